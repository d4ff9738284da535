"""The second stage as a whole: set up, find where a run stands, let it go on."""

import signal
from pathlib import Path

import torch

from pipeline.config import FitConfig
from pipeline.fit.checkpoint.format import Checkpoint
from pipeline.fit.checkpoint.resuming import find_state
from pipeline.fit.distributed.accelerate_config import hidden_sharding, with_launchers_sharding
from pipeline.fit.distributed.signals import exit_code
from pipeline.fit.estimate.dry_run import print_dry_run
from pipeline.fit.model.compile import (
    is_of_the_compiler,
    not_compiled,
)
from pipeline.fit.setup import (
    Setup,
    holding_output,
    join_processes,
    open_data,
    set_up,
)
from pipeline.fit.training.run import Run, out_of_memory


def fit(config: FitConfig) -> Path:
    """Train a model on a prepared folder, or go on with a run that was stopped.

    Under ``torchrun`` or ``accelerate launch`` every process calls this with the same settings.

    Args:
        config: The settings.

    Returns:
        ``config.output_dir``: the trained folder, complete. With ``dry_run`` a table is printed
        instead, and nothing written.

    Raises:
        ConfigError: A setting contradicts the data or the machine.
        PreparedFolderError: The prepared folder is missing, incomplete or damaged.
        ModelError: The model cannot be loaded or does not fit the data, or training diverged.
        CheckpointError: The output folder holds a run with other settings, or a damaged one.
        OutputError: A result cannot be written.
        ProcessError: Another process of the run ended before its time.
        SystemExit: SIGTERM or SIGINT stopped the run, which is saved; with the signal's code.
    """
    config = with_launchers_sharding(config)
    if config.dry_run:
        print_dry_run(config)
        return Path(config.output_dir)
    data = open_data(config)
    with hidden_sharding(), join_processes(config) as accelerator:
        setup = set_up(config, accelerator, data)
        with holding_output(setup):
            checkpoint, finished = find_state(setup)
            stop = None
            if finished:
                setup.say("finished before; nothing to train")
            else:
                stop = _run(setup, checkpoint)
            accelerator.wait_for_everyone()
    if stop is not None:
        raise SystemExit(exit_code(stop))
    return setup.output


def _run(setup: Setup, checkpoint: Checkpoint | None) -> signal.Signals | None:
    try:
        return Run(setup, checkpoint).run()
    except torch.cuda.OutOfMemoryError as error:
        raise out_of_memory(setup) from error
    except Exception as error:
        if setup.config.torch_compile and is_of_the_compiler(error):
            raise not_compiled(error) from error
        raise
