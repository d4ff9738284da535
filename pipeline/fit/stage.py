"""The second stage as a whole, in reading order: set up, model, train, save."""

import dataclasses
import importlib.util
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.config import FitConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.fit.batching import StepPlan
from pipeline.fit.checkpoint import (
    Checkpoint,
    damaged,
    delete_leftovers,
    delete_oldest,
    find_checkpoint,
    run_identity,
    write_checkpoint,
)
from pipeline.fit.collate import DataCollatorForSupervisedDataset
from pipeline.fit.dataset import SupervisedDataset
from pipeline.fit.evaluate import Evaluator
from pipeline.fit.loop import TrainingLoop, TrainingStep
from pipeline.fit.model import load_checkpoint_model, load_model
from pipeline.fit.optim import make_optimizer, make_schedule
from pipeline.fit.plan import RunPlan, plan_run
from pipeline.fit.report import Reporter
from pipeline.fit.rng import restore_rng_state, rng_state
from pipeline.fit.state import RunState, trainer_state_json
from pipeline.fit.trained import is_trained, write_trained
from pipeline.progress import note
from pipeline.store.atomic import output_errors
from pipeline.store.manifest import Manifest
from pipeline.tokenizer import TextTokenizer, load_tokenizer


def fit(config: FitConfig) -> Path:
    """Train a model on a prepared folder, or go on with a run that was stopped.

    Under ``torchrun`` or ``accelerate launch`` every process calls this with the same settings.

    Args:
        config: The settings.

    Returns:
        ``config.output_dir``: the trained folder, complete.

    Raises:
        ConfigError: A setting contradicts the data or the machine.
        PreparedFolderError: The prepared folder is missing, incomplete or damaged.
        ModelError: The model cannot be loaded or does not fit the data, or training diverged.
        CheckpointError: The output folder holds a run with other settings, or a damaged one.
        OutputError: A result cannot be written.
    """
    setup = set_up(config)
    try:
        checkpoint, finished = _find_state(setup)
        if finished:
            setup.say("finished before; nothing to train")
        else:
            Run(setup, checkpoint).run()
        setup.accelerator.wait_for_everyone()
    except torch.cuda.OutOfMemoryError as error:
        raise _out_of_memory(config, setup) from error
    finally:
        setup.close()
    return setup.output


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that is there before a model is: what can be wrong with it is found first."""

    config: FitConfig
    accelerator: Any
    dataset: SupervisedDataset
    eval_dataset: SupervisedDataset | None
    tokenizer: TextTokenizer
    plan: RunPlan
    identity: dict[str, Any]
    close: Callable[[], None]

    @property
    def output(self) -> Path:
        """The folder that everything is written into."""
        return Path(self.config.output_dir)

    @property
    def manifest(self) -> Manifest:
        """The prepared folder's."""
        return self.dataset.manifest

    @property
    def tokenizer_folder(self) -> Path:
        """The prepared folder's tokenizer."""
        return self.dataset.path / "tokenizer"

    def say(self, text: str) -> None:
        """Print a note, from the main process alone."""
        if self.accelerator.is_main_process:
            note(text)


def set_up(config: FitConfig) -> Setup:
    """Open the data, join the other processes, plan the run.

    Raises:
        DuetError: As ``fit``.
    """
    num_rows = None if config.num_data < 1 else config.num_data
    dataset = SupervisedDataset(config.data_path, "train", num_rows=num_rows)
    eval_dataset = None
    if dataset.manifest.rows("eval"):
        eval_dataset = SupervisedDataset(config.data_path, "eval")
    _check_length(config, dataset.manifest)
    _check_trackers(config)
    tokenizer = load_tokenizer(str(dataset.path / "tokenizer"))
    accelerator, close = _join(config)
    try:
        plan = plan_run(config, num_rows=len(dataset), processes=accelerator.num_processes,
                        eval_rows=len(eval_dataset) if eval_dataset is not None else 0)  # fmt: skip
        identity = run_identity(config, plan, num_rows=len(dataset),
                                fingerprint=dataset.manifest.fingerprint)  # fmt: skip
        setup = Setup(config=config, accelerator=accelerator, dataset=dataset, plan=plan,
                      eval_dataset=eval_dataset, tokenizer=tokenizer, identity=identity,
                      close=close)  # fmt: skip
        _note_what_means_nothing(setup)
        if accelerator.is_main_process:
            _make_output_folder(setup.output)
        accelerator.wait_for_everyone()
    except BaseException:
        close()
        raise
    return setup


def _check_length(config: FitConfig, manifest: Manifest) -> None:
    prepared = manifest.config.get("model_max_length")
    if config.model_max_length is not None and config.model_max_length != prepared:
        raise ConfigError("the rows were cut to another length", where="--model-max-length",
                          got=f"{config.model_max_length}, prepared with {prepared}",
                          do="leave it out, or run duet prepare with this length")  # fmt: skip


def _check_trackers(config: FitConfig) -> None:
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError("a tracker's package is missing", where=f"--report-to {name}",
                              got="not installed", do=f"pip install {name}")  # fmt: skip


def _join(config: FitConfig) -> tuple[Any, Callable[[], None]]:
    """Return the Accelerator, and what ends it."""
    from accelerate import (  # type: ignore[import-untyped]
        Accelerator,
        DistributedDataParallelKwargs,
    )
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    # The state is global: without this, a second run in this process keeps the first's precision.
    AcceleratorState._reset_state()
    was_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        # Unless told so, accelerate does not join processes that have no GPU.
        cpu=processes > 1 and not _has_gpu(),
        mixed_precision="bf16" if config.bf16 else "no",
        log_with=config.trackers or None,
        project_dir=config.output_dir,
        kwargs_handlers=[parallel],
    )

    def close() -> None:
        for tracker in accelerator.trackers:
            tracker.finish()
        if not was_joined:
            accelerator.state.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)

    return accelerator, close


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
    delete_leftovers(output)


def _note_what_means_nothing(setup: Setup) -> None:
    config, accelerator = setup.config, setup.accelerator
    if config.tf32 is not None:
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        elif config.tf32:
            setup.say("--tf32 means nothing on this device; ignored")
    if config.fsdp:
        reason = "in one process" if accelerator.num_processes == 1 else "in this version"
        setup.say(f"--fsdp means nothing {reason}; every process holds the whole model")


def _find_state(setup: Setup) -> tuple[Checkpoint | None, bool]:
    """Return the checkpoint to go on from, and whether the run has nothing left to do.

    The main process decides for all: the others must not look while it writes.
    """
    from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

    found: list[Any] = [None, False]
    if setup.accelerator.is_main_process:
        checkpoint = find_checkpoint(setup.output)
        if checkpoint is not None:
            checkpoint.check_identity(setup.identity)
            ended = checkpoint.state.step == setup.plan.total_steps
            found = [checkpoint, ended and is_trained(setup.output, checkpoint.state)]
    broadcast_object_list(found)
    return found[0], found[1]


class Run:
    """One sitting of a run, from the model to the trained folder."""

    def __init__(self, setup: Setup, checkpoint: Checkpoint | None) -> None:
        """Load or make everything that changes while training."""
        self._setup, config, plan = setup, setup.config, setup.plan
        accelerator = setup.accelerator
        self._state = checkpoint.state if checkpoint is not None else RunState()
        setup.say(f"rows per step {plan.rows_per_step} {plan.rows_source}")
        self._model = self._load_model(checkpoint)
        self._wrapped = accelerator.prepare_model(self._model)
        if config.torch_compile:
            self._wrapped.compile(dynamic=True)  # in place: the weights keep their names
        self._optimizer = make_optimizer(self._model, config)
        self._schedule = make_schedule(self._optimizer, config, plan.total_steps)
        self._collate = DataCollatorForSupervisedDataset(self._model.config)
        self._evaluator: Evaluator | None = None
        self._restore(checkpoint)

    def run(self) -> None:
        """Train, and write the trained folder."""
        setup, state = self._setup, self._state
        self._start_trackers()
        with Reporter(setup.accelerator, setup.plan.total_steps, state.step) as reporter:
            loop = self._loop(reporter)
            self._wrapped.train()
            loop.run()
            loop.finish()
        if setup.accelerator.is_main_process:
            write_trained(setup.output, self._model, setup.tokenizer_folder,
                          run=self._facts(), trainer_state=self._trainer_state())  # fmt: skip

    def _load_model(self, checkpoint: Checkpoint | None) -> Any:
        config, tokenizer = self._setup.config, self._setup.tokenizer
        if checkpoint is None:
            return load_model(config, tokenizer)
        self._setup.say(f"going on from {checkpoint.folder.name}")
        try:
            return load_checkpoint_model(checkpoint.folder, config, tokenizer)
        except ModelError as error:
            raise damaged(checkpoint.folder, error) from error

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Put optimizer, schedule and generators where the checkpoint has them, or seed them."""
        from accelerate.utils import set_seed

        accelerator = self._setup.accelerator
        # Device-specific: each process draws dropout of its own.
        set_seed(self._setup.config.seed + self._state.step, device_specific=True)
        if checkpoint is None:
            return
        try:
            self._optimizer.load_state_dict(checkpoint.load("optimizer.pt"))
            self._schedule.load_state_dict(checkpoint.load("scheduler.pt"))
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(checkpoint.folder, error) from error
        rng = checkpoint.rng_state(accelerator.process_index, accelerator.num_processes)
        if rng is not None:
            restore_rng_state(rng)
        else:
            self._setup.say("another number of processes than before: dropout is drawn anew")

    def _loop(self, reporter: Reporter) -> TrainingLoop:
        setup, plan = self._setup, self._setup.plan
        steps = StepPlan(num_rows=len(setup.dataset), rows_per_step=plan.rows_per_step,
                         seed=setup.config.seed)  # fmt: skip
        take_step = TrainingStep(setup.config, setup.accelerator, self._wrapped, self._optimizer,
                                 self._schedule, setup.dataset, self._collate)  # fmt: skip
        return TrainingLoop(plan, steps, self._state, take_step, self._evaluate, self._save,
                            reporter)  # fmt: skip

    def _evaluate(self) -> dict[str, float]:
        setup = self._setup
        if self._evaluator is None:
            assert setup.eval_dataset is not None, "the plan has evaluations only with a split"
            self._evaluator = Evaluator(setup.eval_dataset, self._collate, setup.tokenizer,
                                        setup.accelerator,
                                        setup.config.per_device_eval_batch_size)  # fmt: skip
        return self._evaluator.run(self._wrapped)

    def _save(self) -> None:
        from accelerate.utils import gather_object

        setup = self._setup
        rng_states = gather_object([rng_state()])
        if setup.accelerator.is_main_process:
            write_checkpoint(
                setup.output, model=self._model, tokenizer=setup.tokenizer_folder,
                optimizer=self._optimizer.state_dict(), schedule=self._schedule.state_dict(),
                rng_states=rng_states, identity=setup.identity, state=self._state,
                trainer_state=self._trainer_state(),
            )  # fmt: skip
            delete_oldest(setup.output, self._state.step, setup.config.save_total_limit)
        setup.accelerator.wait_for_everyone()

    def _trainer_state(self) -> str:
        return trainer_state_json(self._state, self._setup.plan, self._setup.config)

    def _facts(self) -> dict[str, Any]:
        """Return the content of ``run.json``."""
        setup, manifest = self._setup, self._setup.manifest
        names = ("torch", "transformers", "accelerate", "tokenizers")
        return {
            "settings": dataclasses.asdict(setup.config),
            "prepared": {
                "fingerprint": manifest.fingerprint,
                "config": manifest.config,
                "counts": manifest.counts,
                "rows": {split: manifest.rows(split) for split in manifest.splits()},
            },
            "rows_per_step": setup.plan.rows_per_step,
            "rows_per_step_source": setup.plan.rows_source,
            "steps": setup.plan.total_steps,
            "processes": setup.accelerator.num_processes,
            "device": _device_name(setup.accelerator.device),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in names},
        }

    def _start_trackers(self) -> None:
        config = self._setup.config
        if config.trackers:
            plain = {name: value if isinstance(value, (bool, int, float, str)) else str(value)
                     for name, value in dataclasses.asdict(config).items()}  # fmt: skip
            named = {"name": config.run_name} if config.run_name else {}
            with output_errors(self._setup.output):
                self._setup.accelerator.init_trackers(
                    "duet", config=plain, init_kwargs={"wandb": named, "trackio": named}
                )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _out_of_memory(config: FitConfig, setup: Setup) -> ConfigError:
    return ConfigError(
        "the device is out of memory", where="--per-device-train-batch-size",
        got=config.per_device_train_batch_size,
        do=f"give a smaller one, with --train-batch-size {setup.plan.rows_per_step} to keep the "
        "rows of a step, or --gradient-checkpointing True",
    )  # fmt: skip
