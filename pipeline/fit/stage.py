"""The second stage as a whole: build a run, find where it stands, train."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config import EVAL_METRICS, FitConfig
from pipeline.config.views import ModelSettings
from pipeline.console.logs import note, print_lines, print_result
from pipeline.console.progress import Wait
from pipeline.errors import ConfigError, require_package
from pipeline.fit.checkpoint.identity import run_identity
from pipeline.fit.checkpoint.output import holding_output
from pipeline.fit.checkpoint.pretrained import MODEL_FILES
from pipeline.fit.context import RunContext
from pipeline.fit.data.prepared import PreparedData, check_shards, open_data
from pipeline.fit.device import (
    is_out_of_memory,
    precision_notes,
    set_allocator,
    set_attention,
)
from pipeline.fit.distributed.accelerate_config import hidden_sharding, with_launcher_settings
from pipeline.fit.distributed.fsdp import sharding_of
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.launch import join_processes
from pipeline.fit.distributed.signals import exit_code
from pipeline.fit.estimate.dry_run import dry_run
from pipeline.fit.model.adapter import base_name, with_adapter_settings
from pipeline.fit.model.checks import check_model
from pipeline.fit.model.fast_paths.compile import is_of_the_compiler, not_compiled
from pipeline.fit.model.lora import require_peft
from pipeline.fit.schedule import RunPlan, plan_run
from pipeline.fit.training.build import build_checkpointer, build_trainer, out_of_memory
from pipeline.fit.training.trainer import TrainerCallback
from pipeline.hub.upload import HubRepo
from pipeline.world import World


def fit(config: FitConfig, *, callback: TrainerCallback | None = None) -> Path:
    """Train a model on a prepared folder, or resume a run that was stopped.

    Under ``torchrun`` or ``accelerate launch`` every process calls this with the same settings.

    Args:
        config: The settings.
        callback: Is told what happens, in each process.

    Returns:
        ``config.output_dir``, the trained folder, complete. With ``dry_run`` a table is printed
        instead, and nothing written.

    Raises:
        ConfigError: A setting contradicts the data or the machine.
        PreparedFolderError: The prepared folder is missing, incomplete or damaged.
        ModelError: The model cannot be loaded or does not fit the data, or training diverged.
        CheckpointError: The output folder holds a run with other settings, or a damaged one.
        OutputError: A result cannot be written, or the hub does not take it.
        ProcessError: Another process of the run ended before its time.
        SystemExit: SIGTERM or SIGINT stopped the run, which is saved; with the signal's code.
    """
    callback, world = callback or TrainerCallback(), World.from_environment()
    if config.dry_run:
        estimate(config, world.size)
        return Path(config.output_dir)
    check_processes(config, world)
    config = with_launcher_settings(with_adapter_settings(config))
    repo = check_push(config) if config.push_to_hub else None
    if config.hub_token is not None:  # nothing that is kept may hold it
        config = dataclasses.replace(config, hub_token=None)
    data = open_data(config)
    check_best(config, data)
    model = config.model
    check_packages(config.trackers, model, config.optim)
    set_allocator()
    set_attention()
    output, stop, table = Path(config.output_dir), None, list[str]()
    with hidden_sharding(), join_processes(world, bf16=config.bf16) as accelerator:
        check_device(model, accelerator.device)
        check_model(
            model,
            data.tokenizer,
            longest=data.longest_rows,
            any_template=data.has_chosen_template,
        )
        hosts = HostGroup.join()
        if repo:
            hosts.run_on_first(repo.create)
        ctx = build_context(config, accelerator, data)
        with holding_output(output, is_main=accelerator.is_main_process):
            checkpointer = build_checkpointer(ctx, callback.on_write)
            checkpoint, finished = checkpointer.load_latest()
            if finished:
                note("already finished: nothing to train")
            else:
                with explained_errors(config, ctx.plan):
                    trainer = build_trainer(ctx, checkpoint, checkpointer, hosts, callback=callback)
                    stop = trainer.train()
                    if stop is None:
                        trainer.save_pretrained()
                        table = trainer.end_table(output)
            if repo and stop is None:
                hosts.run_on_first(
                    lambda: repo.upload(output, MODEL_FILES, again="the same command")
                )
            accelerator.wait_for_everyone()
    if stop is not None:
        raise SystemExit(exit_code(stop))
    print_lines(table)
    return output


def estimate(config: FitConfig, processes: int) -> None:
    """Print what a run on so many processes would do and need; only the first one speaks."""
    config = with_launcher_settings(with_adapter_settings(config))
    with Wait("estimating"):
        lines = list(dry_run(config, processes))
    print_result("\n".join(lines))


def check_processes(config: FitConfig, world: World) -> None:
    """Refuse a number of processes that is not this run's: a function starts none."""
    if config.num_processes not in ("1", "auto", str(world.local_size)):
        raise ConfigError(
            "called from Python, a run stays in this process",
            where="--num-processes",
            got=config.num_processes,
            do="use the command duet fit, which starts them, or start this program with torchrun",
        )


def check_packages(trackers: Sequence[str], model: ModelSettings, optim: str) -> None:
    """Refuse what needs a package that is not there, or a newer torch."""
    for name in trackers:
        require_package(name, where=f"--report-to {name}", install=name)
    if model.lora is not None:
        require_peft("--lora-r")
    if model.quantize:
        require_package("bitsandbytes", where="--quantize", install='"duet-t5[quantize]"')
    if optim == "adamw_8bit":
        require_package("bitsandbytes", where="--optim adamw_8bit", install='"duet-t5[quantize]"')
    if optim == "muon" and not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            "this torch has no Muon",
            where="--optim muon",
            got=torch.__version__,
            do="install 2.9 or newer, or use --optim adamw_torch",
        )


def check_best(config: FitConfig, data: PreparedData) -> None:
    """Refuse to look for the best model where its metric is never computed."""
    own = [f"eval_{value}" for value in EVAL_METRICS]
    looks_for_best = config.load_best_model_at_end or config.early_stopping_patience
    if data.eval is None and looks_for_best and config.best_metric in own:
        raise ConfigError(
            "no evaluation to find the best model by",
            where="--metric-for-best-model",
            got="no eval split in the prepared folder",
            do="prepare with --eval-fraction, or give NAME_loss of a folder of --eval-data-path",
        )


def check_push(config: FitConfig) -> HubRepo:
    """Return where the trained model is pushed to; refuse what would be of no use there."""
    repo = HubRepo.from_options(config, Path(config.output_dir))
    if config.lora_r:
        base = base_name(config.model_name_or_path, config.cache_dir)
        if Path(base).is_dir():
            raise ConfigError(
                "an adapter of a model that others do not have",
                where="--push-to-hub",
                got=f"the base is the folder {base}",
                do="give the base by its hub name, or push what duet export --merge makes of it",
            )
    return repo


def check_device(model: ModelSettings, device: torch.device) -> None:
    """Refuse a device on which it would not be the same run.

    bitsandbytes computes on a CPU, too, but evaluates there with weights that it has packed anew.
    """
    if model.quantize and device.type in ("cpu", "mps"):
        raise ConfigError(
            "4-bit weights need a GPU",
            where="--quantize",
            got=f"this run is on the device {device.type}",
            do="leave it out: LoRA alone runs anywhere; or start where there is a GPU",
        )


def build_context(config: FitConfig, accelerator: Any, data: PreparedData) -> RunContext:
    """Plan the run: what can be wrong is found before it takes time.

    Raises:
        ConfigError: See ``schedule.plan_run``.
        PreparedFolderError: A shard is damaged.
    """
    plan = plan_run(
        config.steps,
        num_rows=data.train.rows_per_epoch,
        eval_rows=data.eval_rows,
        processes=accelerator.num_processes,
    )
    ctx = RunContext(
        config=config,
        accelerator=accelerator,
        data=data,
        plan=plan,
        identity=run_identity(config, plan, data),
        sharding=sharding_of(config, accelerator.num_processes),
        output=Path(config.output_dir),
    )
    _ignored_flags(config, accelerator)
    if accelerator.is_local_main_process:  # nodes may have a prepared folder each
        check_shards(data)
    accelerator.wait_for_everyone()
    return ctx


def _ignored_flags(config: FitConfig, accelerator: Any) -> None:
    """Set the precision of matrix products, and say which flags change nothing here."""
    if config.tf32 is not None:
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        elif config.tf32:
            note("--tf32 is ignored: this device does not support it")
    for line in precision_notes(accelerator.device, bf16=config.bf16, tf32=config.tf32):
        note(line)
    if config.fsdp and accelerator.num_processes == 1:
        note("--fsdp is ignored: a single process has nothing to shard")


@contextlib.contextmanager
def explained_errors(config: FitConfig, plan: RunPlan) -> Iterator[None]:
    """Turn what the device's memory and torch's compiler raise into one clear line."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(
                config.per_device_train_batch_size, plan.global_batch_size
            ) from error
        if config.torch_compile and is_of_the_compiler(error):
            raise not_compiled(error) from error
        raise
