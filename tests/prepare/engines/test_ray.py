"""Segments encoded on Ray: the bytes of a local run, whatever dies on the way."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import ConfigError, DuetError
from pipeline.prepare.encode.chunk_content import Edit
from pipeline.prepare.engines.ray import UNSEEN, libraries, run_on_node
from pipeline.prepare.stage import prepare
from pipeline.store.chunk_cache import Chunk, ChunkCache
from tests.conftest import ROOT, SAMPLE, record
from tests.prepare.helpers import contents

Command = Callable[..., list[str]]
Run = subprocess.Popen[str]
Start = Callable[[list[str]], Run]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of four segments; the last one repeats conversations of the first."""
    words = SAMPLE.read_text(encoding="utf-8").split()
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("export") / "export.json"
    records = [
        record(f"c{i}", *(" ".join(rng.choices(words, k=150)) for _ in range(6)))
        for i in range(3_000)
    ]
    path.write_text(json.dumps(records + records[:20]), encoding="utf-8")
    return path


@pytest.fixture
def command(
    export: Path, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Return a function that returns the command line of a run into a folder of its name."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install '.[ray]'")

    def line(name: str, *more: str) -> list[str]:
        return line_of(export, tiny_t5, tmp_path / name, *more)

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Ray's sockets lie below it, so its path must be short.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield line


def line_of(data: object, model: Path, output: Path, *more: str) -> list[str]:
    python = [sys.executable, "-W", "error", "-m", "pipeline", "prepare"]
    paths = ["--data-path", str(data), "--model-name-or-path", str(model)]
    rows = ["--eval-fraction", "0.1", "--model-max-length", "256"]
    return [*python, *paths, *rows, "--output-dir", str(output), *more]


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


@pytest.fixture(scope="module")
def local(
    export: Path, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """All files of a run in one process."""
    output = tmp_path_factory.mktemp("local")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = line_of(export, tiny_t5, output, "--num-workers", "1")
    subprocess.run(line, check=True, env=environment, capture_output=True)
    assert len(chunks_in(output)) == 5  # one of them again, without what it repeats
    (folder,) = output.glob("[!.]*")
    return contents(folder)


def chunks_in(output: Path) -> dict[Path, int]:
    """Return the chunks that are kept, with their numbers on the disk."""
    return {path: path.stat().st_ino for path in output.glob(".chunks/*/*/chunk.json")}


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
    assert contents(Path(on_ray)) == local


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_no_byte(
    command: Command, start: Start, local: dict[str, bytes]
) -> None:
    run = start(command("ray", "--num-workers", "2", "--engine", "ray"))
    os.kill(*wait_for(run, "ray::run_on_node"), signal.SIGKILL)
    assert contents(Path(ended(run))) == local


@pytest.mark.slow
@pytest.mark.parametrize("dead", [("raylet/raylet",), ("raylet/raylet", "gcs/gcs_server")])
def test_a_cluster_that_dies_is_one_line_and_finished_chunks_are_kept(
    dead: tuple[str, ...],
    command: Command,
    start: Start,
    local: dict[str, bytes],
    tmp_path: Path,
) -> None:
    run = start(command("ray", "--num-workers", "1", "--engine", "ray"))
    while run.poll() is None and not chunks_in(tmp_path / "ray"):
        time.sleep(0.001)
    for pid in wait_for(run, *(f"{name} --" for name in dead)):
        os.kill(pid, signal.SIGKILL)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, out) == (1, "")
    (line,) = said(err)
    assert line.startswith("error: the Ray cluster died")
    kept = chunks_in(tmp_path / "ray")
    assert 0 < len(kept) < 5
    assert contents(Path(ended(start(command("ray", "--num-workers", "1"))))) == local
    assert chunks_in(tmp_path / "ray").items() >= kept.items()


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
            assert contents(Path(ended(start(command(name, "--engine", "ray", *more))))) == local
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
        assert contents(Path(ended(run))) == local


@pytest.mark.slow
def test_a_node_that_sees_no_file_is_sent_bytes_and_sends_some(
    command: Command, start: Start, local: dict[str, bytes], export: Path, tmp_path: Path
) -> None:
    hidden = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*hidden, "true"]).returncode:
        pytest.skip("this system makes no mount namespace: unshare --map-root-user --mount")
    (tmp_path / "ray").mkdir()
    mounts = [f"mount -t tmpfs x {folder}" for folder in (export.parent, tmp_path / "ray")]
    without_them = [*hidden, " && ".join([*mounts, 'exec "$0" "$@"'])]
    address = free_address()
    with (
        node(start, "--head", "--port", address.partition(":")[2], num_cpus=0),
        node(start, "--address", address, before=without_them) as other,
    ):
        assert not Path(f"/proc/{other.pid}/root{export}").exists()
        run = start(command("ray", "--engine", "ray", "--ray-address", address))
        assert contents(Path(ended(run))) == local


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def node(
    start: Start, *options: str, num_cpus: int = 1, before: Sequence[str] = ()
) -> Iterator[Run]:
    """Run a node of a cluster."""
    line = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    run = start([*before, *line, "--num-cpus", str(num_cpus), *options])
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
        "error: a package is not installed; where: --engine ray; got: no ray; "
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
        run_on_node({"pyarrow": "0.1"}, [settings], "encode", ())


def test_a_node_that_does_not_see_the_cache_takes_nothing_out_of_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    context = SimpleNamespace(hex=lambda: "a run")
    driver = ChunkCache(tmp_path / "chunks", tmp_path / "temporary")
    sent = (SimpleNamespace(), driver, tmp_path / "marker", "token", tmp_path)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda _: sent))
    chunk = Chunk(key="k", files={}, content={})
    change = Edit(repeats=(0,))
    found = run_on_node(libraries(), [context], "edit", (chunk, change, None))
    assert found == (UNSEEN, None)
