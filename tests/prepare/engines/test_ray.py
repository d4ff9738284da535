"""Parts encoded on Ray: the bytes of a local run, whatever dies on the way."""

import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import ConfigError, DuetError
from pipeline.prepare.encode.segment_encoder import SegmentEncoder
from pipeline.prepare.engines.ray import run_on_node
from pipeline.prepare.stage import prepare
from tests.conftest import ROOT, SAMPLE, record

Command = Callable[..., list[str]]
Run = subprocess.Popen[str]
Start = Callable[[list[str]], Run]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of four parts, more or less."""
    words = SAMPLE.read_text(encoding="utf-8").split()
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("export") / "export.json"
    records = [
        record(f"c{i}", *(" ".join(rng.choices(words, k=150)) for _ in range(6)))
        for i in range(1_000)
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def command(
    export: Path, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Return a function that returns the command line of a run into a folder of its name."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install '.[ray]'")

    def line(name: str, *more: str) -> list[str]:
        python = [sys.executable, "-W", "error", "-m", "pipeline", "prepare"]
        paths = ["--data-path", str(export), "--model-name-or-path", str(tiny_t5)]
        rows = ["--eval-fraction", "0.1", "--model-max-length", "256"]
        return [*python, *paths, *rows, "--output-dir", str(tmp_path / name), *more]

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Ray's sockets lie below it, so its path must be short.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield line


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a process; it ends with the test."""
    runs = list[Run]()

    def popen(line: list[str]) -> Run:
        run = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        runs.append(run)
        return run

    yield popen
    for run in runs:
        run.kill()
        run.communicate()


@pytest.fixture
def local(command: Command, start: Start) -> dict[str, bytes]:
    """All files of a run in one process."""
    return files(ended(start(command("local", "--num-workers", "1"))))


def ended(run: Run) -> str:
    """Return what a run printed, which must be one line."""
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert len(out.splitlines()) == 1
    assert said(err)[0].startswith("records "), err
    return out.strip()


def said(err: str) -> list[str]:
    """Return the lines on stderr, without those that a slow run adds."""
    return [line for line in err.splitlines() if not line.startswith("preparing: ")]


def files(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def below(pid: int) -> dict[int, str]:
    """Return the processes below one, with their command lines."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()[1:]]
    found, new = dict[int, str](), {pid}
    while new:
        children = {int(p): args for p, parent, args in rows if int(parent) in new}
        found |= children
        new = set(children)
    return found


def wait_for(run: subprocess.Popen[str], *words: str) -> list[int]:
    """Wait for a process below a run for each word in a command line; return them."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()
        found = below(run.pid)
        chosen = [[pid for pid, args in found.items() if word in args] for word in words]
        if all(chosen):
            return [pids[0] for pids in chosen]
        time.sleep(0.005)
    raise AssertionError(f"no {words} among {below(run.pid)}")


@pytest.mark.slow
def test_two_ray_workers_give_the_bytes_of_a_local_run(
    command: Command, start: Start, local: dict[str, bytes]
) -> None:
    on_ray = ended(start(command("ray", "--num-workers", "2", "--engine", "ray")))
    assert files(on_ray) == local


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_no_byte(
    command: Command, start: Start, local: dict[str, bytes]
) -> None:
    run = start(command("ray", "--num-workers", "2", "--engine", "ray"))
    os.kill(*wait_for(run, "ray::run_on_node"), signal.SIGKILL)
    assert files(ended(run)) == local


@pytest.mark.slow
def test_a_cluster_that_dies_is_one_line_and_finished_parts_are_kept(
    command: Command, start: Start, local: dict[str, bytes], tmp_path: Path
) -> None:
    run = start(command("ray", "--num-workers", "1", "--engine", "ray"))
    chunks = tmp_path / "ray" / ".chunks"
    while run.poll() is None and not list(chunks.glob("*/*/chunk.json")):
        time.sleep(0.001)
    os.kill(run.pid, signal.SIGSTOP)  # else it might end before the cluster does
    for pid in wait_for(run, "raylet/raylet --", "gcs/gcs_server --"):
        os.kill(pid, signal.SIGKILL)
    os.kill(run.pid, signal.SIGCONT)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, out) == (1, "")
    (line,) = said(err)
    assert line.startswith("error: the Ray cluster died")
    kept = {path: path.stat().st_ino for path in chunks.glob("*/*/chunk.json")}
    assert kept
    assert files(ended(start(command("ray", "--num-workers", "1")))) == local
    assert all(path.stat().st_ino == inode for path, inode in kept.items())


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_process_behind(command: Command, start: Start) -> None:
    run = start(command("ray", "--num-workers", "2", "--engine", "ray"))
    wait_for(run, "ray::run_on_node")
    left = set(below(run.pid))
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 60
    while left := {pid for pid in left if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.slow
def test_a_cluster_that_runs_is_joined_and_goes_on_running(
    command: Command, start: Start, local: dict[str, bytes]
) -> None:
    address = free_address()
    with node(start, "--head", "--port", address.partition(":")[2]) as head:
        for name, more in (("given", ["--ray-address", address]), ("found", [])):
            assert files(ended(start(command(name, "--engine", "ray", *more)))) == local
        assert head.poll() is None


@pytest.mark.slow
def test_a_node_that_dies_changes_no_byte(
    command: Command, start: Start, local: dict[str, bytes]
) -> None:
    address = free_address()
    with (
        node(start, "--head", "--port", address.partition(":")[2]),
        node(start, "--address", address) as other,
    ):
        run = start(command("ray", "--engine", "ray", "--ray-address", address))
        wait_for(other, "ray::run_on_node")
        for pid in below(other.pid):
            with contextlib.suppress(ProcessLookupError):  # ended with its parent
                os.kill(pid, signal.SIGKILL)
        assert files(ended(run)) == local


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def node(start: Start, *options: str) -> Iterator[Run]:
    """Run a node of a cluster, with one CPU."""
    line = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    run = start([*line, *options])
    try:
        wait_for(run, "ray::RuntimeEnvAgent")
        yield run
    finally:
        run.terminate()
        run.communicate(timeout=60)


def test_an_address_where_no_cluster_is_gives_one_line(command: Command, start: Start) -> None:
    run = start(command("ray", "--engine", "ray", "--ray-address", "127.0.0.1:1"))
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (1, "")
    (line,) = said(err)
    assert line.startswith("error: no Ray cluster can be joined or started; where: --ray-address; ")


def test_without_ray_there_is_one_line(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = PrepareConfig(
        data_path=(str(SAMPLE),),
        model_name_or_path=str(tiny_t5),
        output_dir=str(tmp_path),
        engine="ray",
    )
    with pytest.raises(ConfigError) as raised:
        prepare(config)
    assert str(raised.value) == (
        "error: Ray is not installed; where: --engine ray; got: no package ray; "
        "do: pip install 'duet-t5[ray]'"
    )


@pytest.mark.parametrize(
    ("engine", "address"), [("local", "10.0.0.1:6379"), ("ray", "ray://10.0.0.1:10001")]
)
def test_an_address_that_cannot_be_used_is_refused(engine: str, address: str) -> None:
    with pytest.raises(ConfigError, match="out of range") as raised:
        PrepareConfig(data_path=("x",), model_name_or_path="m", engine=engine, ray_address=address)
    assert raised.value.where == "--ray-address"


def test_a_node_with_other_libraries_is_refused() -> None:
    settings = SimpleNamespace(hex=lambda: "name")
    with pytest.raises(DuetError, match="a node has other libraries than the driver"):
        run_on_node({"pyarrow": "0.1"}, [settings], SegmentEncoder.encode, ())
