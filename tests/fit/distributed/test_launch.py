"""Processes that are promised and do not come."""

import os
import socket
import subprocess
import sys
import time

import pytest

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.distributed.launch import check_launcher, told_while_waiting
from pipeline.world import World


def test_who_is_waited_for_is_said_once_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with told_while_waiting(World(size=4), seconds=0.01):
        time.sleep(0.3)
    assert capsys.readouterr().err == (
        "note: waiting for 3 other processes (WORLD_SIZE=4, RANK=0) at 10.0.0.1:29500; "
        "unset WORLD_SIZE to run alone\n"
    )
    with told_while_waiting(World(size=4), seconds=30):
        pass
    with told_while_waiting(World(), seconds=0.01):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_stale_world_size_says_so(config: FitConfig) -> None:
    args = ["--data-path", config.data_path[0], "--model-name-or-path", config.model_name_or_path]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    stale = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", "fit", *args, "--output-dir", config.output_dir],
        env=os.environ | stale | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "waiting" in line or "Error" in line)
        process.kill()
    assert "unset WORLD_SIZE to run alone" in line


def test_processes_that_no_launcher_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no address where the processes meet") as caught:
        check_launcher(World(size=4))
    assert "unset WORLD_SIZE" in caught.value.do
    check_launcher(World())
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    check_launcher(World(size=4))
