"""``--num-processes``: starts a run's processes with torchrun, in place of the user.

The processes get the settings as a file. A signal is passed on to all of them, and they get the
time that they want to save the run; the exit code is theirs.
"""

import hashlib
import logging
import os
import signal
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.run_file import FILENAME, run_file_of
from pipeline.console.logs import note
from pipeline.errors import ConfigError, ProcessError
from pipeline.world import World

if TYPE_CHECKING:
    from pipeline.config import FitConfig, TrainConfig

_LAUNCHED = "DUET_LAUNCHED"
"""In the environment of the processes that are started here: a folder that they share."""
_SECONDS_TO_SAVE = 120
"""Until a process that was asked to stop is killed, which may hang; torchrun's own limit is 30."""


def processes_to_start(config: "FitConfig | TrainConfig") -> int:
    """Return how many processes are to be started; 1: none, the run is in this one.

    Raises:
        ConfigError: A launcher started this one.
    """
    wanted = config.num_processes
    if wanted == "1" or is_launched_here():
        return 1
    if World.is_launched():
        raise ConfigError(
            "the processes of this run are already started",
            where="--num-processes",
            got=f"{wanted}, under torchrun or another launcher",
            do="leave it out, or run duet without a launcher",
        )
    if wanted != "auto":
        return int(wanted)
    import torch

    return max(torch.cuda.device_count(), 1)


def launch(command: str, config: "FitConfig | TrainConfig", processes: int) -> None:
    """Run a command in several processes of this machine, to the end.

    Args:
        command: fit or train.
        config: Its settings.
        processes: How many.

    Raises:
        ConfigError: There are fewer GPUs.
        ProcessError: A signal ended one of the processes.
        SystemExit: They failed, and have said why; or a signal stopped them. With their code.
    """
    _check_gpus(processes)
    note(f"starting {processes} processes with torchrun")
    with tempfile.TemporaryDirectory(prefix="duet-") as folder:
        path = Path(folder) / FILENAME
        path.write_text(run_file_of(command, config), encoding="utf-8")
        os.environ[_LAUNCHED] = folder
        _run_processes(processes, [command, "--config", str(path)], token=config.hub_token)


def is_to_say(text: str) -> bool:
    """Return whether this process is to print an error: the first of a launch that comes to it."""
    folder = os.environ.get(_LAUNCHED)
    if folder is None:
        return True
    try:
        (Path(folder) / hashlib.sha256(text.encode()).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # twice is better than never
        return True
    return True


def is_launched_here() -> bool:
    """Return whether this process was started by ``launch``."""
    return _LAUNCHED in os.environ


def _check_gpus(processes: int) -> None:
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ConfigError(
            "there are fewer GPUs than processes",
            where="--num-processes",
            got=f"{processes}, with {gpus} GPU{'s' * (gpus > 1)}",
            do="give auto, or CUDA_VISIBLE_DEVICES= in the environment to train on the CPU",
        )


def _run_processes(processes: int, args: list[str], *, token: str | None) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # what the processes say is enough
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    if token is not None:
        os.environ["HF_TOKEN"] = token  # which is where they look for it
    parsed: Any = parse_args(  # type: ignore[no-untyped-call, unused-ignore]
        [
            # What --standalone stands for: any free port of this machine.
            *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={uuid.uuid4()}"),
            *("--local-addr=127.0.0.1", f"--nproc-per-node={processes}"),
            *("-m", "pipeline", *args),
        ]
    )
    if hasattr(parsed, "shutdown_timeout"):  # not in older versions
        parsed.shutdown_timeout = _SECONDS_TO_SAVE
    launch_config, entrypoint, entry_args = config_from_args(parsed)
    try:
        elastic_launch(launch_config, entrypoint)(*entry_args)
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            raise SystemExit(failure.exitcode) from None
        raise ProcessError(
            "a process of the run was killed",
            where=f"process {rank} of {processes}",
            got=signal.Signals(-failure.exitcode).name,
            do="often because memory ran out: see the system log. The same command resumes from "
            "the newest checkpoint",
        ) from None
