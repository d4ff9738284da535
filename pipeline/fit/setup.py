"""Settings -> everything that is there before a model is: data, processes, plan, output folder.

What can be wrong with a run is found here, before anything that takes time.
"""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from pipeline.config import FitConfig
from pipeline.errors import ConfigError, PreparedFolderError, ProcessError
from pipeline.fit.checkpoint.format import delete_leftovers, run_identity
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.distributed.fsdp import Sharding, sharding_of
from pipeline.fit.model.loading import architecture, base_weights
from pipeline.fit.model.lora import require_peft
from pipeline.fit.model.quantizing import require_bitsandbytes, require_gpu
from pipeline.fit.schedule import RunPlan, plan_run
from pipeline.logs import note
from pipeline.store.atomic import locked_folder, output_errors
from pipeline.store.fingerprint import key_of, sha256_of_file
from pipeline.store.manifest import Manifest
from pipeline.tokenizer import TextTokenizer, load_tokenizer

MOST_HASHED = 2 * 1000**3
"""Bytes of shards whose hashes are checked before a run: a few seconds. Of more, only the ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """An open prepared folder."""

    train: SupervisedDataset
    eval: SupervisedDataset | None
    """None where there is no split eval, or no row in it."""
    tokenizer: TextTokenizer

    @property
    def manifest(self) -> Manifest:
        """The folder's manifest."""
        return self.train.manifest

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files are."""
        return self.train.path / "tokenizer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """A run, ready to get a model."""

    config: FitConfig
    accelerator: Any
    data: Data
    plan: RunPlan
    identity: dict[str, Any]
    """What must be the same for the run to go on: see ``checkpoint.run_identity``."""

    @property
    def sharding(self) -> Sharding | None:
        """How the model is shared out; None where each process holds it whole."""
        return sharding_of(self.config, self.accelerator.num_processes)

    @property
    def output(self) -> Path:
        """The folder that everything is written into."""
        return Path(self.config.output_dir)

    def say(self, text: str) -> None:
        """Print a note, from the main process alone."""
        if self.accelerator.is_main_process:
            note(text)


def open_data(config: FitConfig) -> Data:
    """Open the prepared folder that a run trains on.

    Raises:
        PreparedFolderError, TokenizerError: It is missing, incomplete or damaged.
        ConfigError: It was cut to another length than the settings say.
    """
    num_rows = None if config.num_data < 1 else config.num_data
    train = SupervisedDataset(config.data_path, "train", num_rows=num_rows)
    prepared = train.manifest.config.get("model_max_length")
    if config.model_max_length is not None and config.model_max_length != prepared:
        raise ConfigError(
            "the rows were cut to another length",
            where="--model-max-length",
            got=f"{config.model_max_length}, prepared with {prepared}",
            do="leave it out, or run duet prepare with this length",
        )
    has_eval = train.manifest.rows("eval") > 0
    return Data(
        train=train,
        eval=SupervisedDataset(config.data_path, "eval") if has_eval else None,
        tokenizer=load_tokenizer(str(train.path / "tokenizer")),
    )


# For another process, which may write or read a large checkpoint: NCCL's own ten minutes are not
# enough for flan-t5-xxl on a slow disk. One that died is noticed without it.
_LONGEST_WAIT = timedelta(hours=2)


@contextlib.contextmanager
def join_processes(config: FitConfig) -> Iterator[Any]:
    """Yield accelerate's Accelerator, joined with the run's other processes.

    Raises:
        ConfigError: A tracker's package is missing, or the launcher asks for what is not here.
        ProcessError: Another process ended while this one waited for it.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import AutocastKwargs

    _check_trackers(config)
    if config.lora_r:
        require_peft("--lora-r")
    if config.quantize:
        require_bitsandbytes()
    # The state is global: without this, a second run in this process keeps the first's precision.
    AcceleratorState._reset_state()
    was_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    sharded = sharding_of(config, processes) is not None
    parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    # Kept until the end of the forward pass, copies in bfloat16 would be the whole model.
    autocast = AutocastKwargs(cache_enabled=not sharded)
    group = InitProcessGroupKwargs(timeout=_LONGEST_WAIT)
    accelerator = Accelerator(
        # Unless told so, accelerate does not join processes that have no GPU.
        cpu=processes > 1 and not _has_gpu(),
        mixed_precision="bf16" if config.bf16 else "no",
        log_with=config.trackers or None,
        project_dir=config.output_dir,
        kwargs_handlers=[parallel, autocast, group],
    )
    check_joined(accelerator, processes)
    if config.quantize:
        require_gpu(accelerator.device)
    try:
        yield accelerator
    except RuntimeError as error:
        if accelerator.num_processes > 1 and _is_of_a_collective(error):
            raise _left_alone(accelerator, error) from error
        raise
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    # Only after a good end: after a fault the others may wait in a collective, and so would this.
    if not was_joined:
        accelerator.state.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Tell whether torch raised it because it could not reach another process."""
    # gloo has no class of its own: its messages begin with the place in its source.
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def _left_alone(accelerator: Any, error: RuntimeError) -> ProcessError:
    return ProcessError(
        "another process of the run has ended",
        where=f"seen by process {accelerator.process_index} of {accelerator.num_processes}",
        got=str(error).splitlines()[0],
        do="see what that one said last; nothing: it was killed, often for want of memory. "
        "The same command goes on from the newest checkpoint",
    )


def check_joined(accelerator: Any, processes: int) -> None:
    """Refuse what a launcher can set up and this program would do wrong without a word.

    Raises:
        ConfigError: Sharding that the launcher set up, or processes that do not know each other.
    """
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):  # the first two: not by the launcher
        raise ConfigError(
            "accelerate was set up with sharding that is not to be had here",
            where="accelerate launch",
            got=kind,
            do='launch without it, and give --fsdp "full_shard"',
        )
    if accelerator.num_processes != processes:
        raise ConfigError(
            "the processes of this run cannot join",
            where="WORLD_SIZE",
            got=f"{processes}, but this process sees {accelerator.num_processes}",
            do="start one process, or give each a device of its own",
        )


def set_up(config: FitConfig, accelerator: Any, data: Data) -> Setup:
    """Plan the run and make its output folder.

    Raises:
        ConfigError: See ``plan.plan_run``.
        PreparedFolderError: A shard is damaged.
        ModelError: The model's config cannot be read.
        OutputError: The folder cannot be written.
    """
    num_rows, eval_rows = len(data.train), len(data.eval) if data.eval is not None else 0
    plan = plan_run(
        config, num_rows=num_rows, eval_rows=eval_rows, processes=accelerator.num_processes
    )
    identity = run_identity(
        config,
        plan,
        fingerprint=data.manifest.fingerprint,
        num_rows=num_rows,
        model=architecture(config.model_name_or_path, config.cache_dir),
        vocabulary=key_of(sorted(data.tokenizer.backend.get_vocab().items())),
    )
    if config.lora_r:
        weights = base_weights(config.model_name_or_path, config.cache_dir)
        identity["--model-name-or-path (weights)"] = weights
    setup = Setup(config=config, accelerator=accelerator, data=data, plan=plan, identity=identity)
    _note_what_means_nothing(setup)
    if accelerator.is_local_main_process:  # nodes may have a prepared folder each
        check_shards(data)
    if accelerator.is_main_process:
        _make_output_folder(setup.output)
    accelerator.wait_for_everyone()
    return setup


@contextlib.contextmanager
def holding_output(setup: Setup) -> Iterator[None]:
    """Keep other runs out of the output folder, and delete what one that was killed left there.

    A launcher that is killed leaves its processes behind, and they go on.

    Raises:
        OutputError: Another run writes into it.
    """
    if not setup.accelerator.is_main_process:
        yield
        return
    with locked_folder(setup.output):
        delete_leftovers(setup.output)
        yield


def check_shards(data: Data) -> None:
    """Check that the rows are those that the first stage wrote.

    Raises:
        PreparedFolderError: They are not.
    """
    opened = {part.split: part for part in (data.train, data.eval) if part is not None}
    shards = [shard for shard in data.manifest.shards if shard.split in opened]
    if sum(shard.bytes for shard in shards) > MOST_HASHED:
        for part in opened.values():
            part.check_ids(data.tokenizer.vocab_size)
        return
    for shard in shards:
        path = data.train.path / shard.path
        found = sha256_of_file(path)
        if found != shard.sha256:
            raise PreparedFolderError(
                "a shard is damaged",
                where=path,
                got=f"SHA-256 {found[:12]}…, not {shard.sha256[:12]}…",
                do="run duet prepare again",
            )


def start_trackers(setup: Setup) -> None:
    """Start the trackers that the settings name.

    Raises:
        ConfigError: One of them cannot start: it wants a login, a network, a disk.
    """
    config = setup.config
    if not config.trackers:
        return
    named = {"name": config.run_name} if config.run_name else {}
    try:
        setup.accelerator.init_trackers(
            "duet", config=_plain(config), init_kwargs={"wandb": named, "trackio": named}
        )
    except Exception as error:  # each tracker has its own
        raise ConfigError(
            "a tracker cannot be started",
            where=f"--report-to {config.report_to}",
            got=error,
            do="mend what it says, or use --report-to none",
        ) from error


def _plain(config: FitConfig) -> dict[str, bool | int | float | str]:
    """Return the settings as trackers take them."""
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in values.items()
    }


def _check_trackers(config: FitConfig) -> None:
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                "a tracker's package is missing",
                where=f"--report-to {name}",
                got="not installed",
                do=f"pip install {name}",
            )


def _has_gpu() -> bool:
    """Tell whether there is a device that several processes can train on."""
    if not hasattr(torch, "accelerator"):  # torch before 2.6
        return torch.cuda.is_available()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type != "mps"


def _make_output_folder(output: Path) -> None:
    """Make the folder, and find out before the training whether it can be written."""
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass


def _note_what_means_nothing(setup: Setup) -> None:
    config, accelerator = setup.config, setup.accelerator
    if config.tf32 is not None:
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        elif config.tf32:
            setup.say("--tf32 means nothing on this device; ignored")
    if config.fsdp and accelerator.num_processes == 1:
        setup.say("--fsdp means nothing in one process, which holds the whole model")
