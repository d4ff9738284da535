"""Runs that are killed, meet a full disk, or meet each other: never a wrong or half result."""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.errors import DuetError, OutputError
from pipeline.prepare import preparation
from pipeline.prepare.engines import local as workers_module
from pipeline.store.atomic import hold_folder, locked_folder, remove_folder
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import _HashingFile
from tests.prepare.helpers import (
    code_for_small,
    contents,
    cut_at,
    generated,
    leftovers,
    visible,
    write,
)

FULL = "No space left on device"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts here; other processes are told in their own code."""
    cut_at(monkeypatch)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some twelve parts, and some records that are rejected."""
    records = generated(100, seed=0)
    records[10:10] = [{"broken": "x" * 2_000} for _ in range(10)]
    return write(tmp_path_factory.mktemp("source") / "x.jsonl", records)


def config_of(source: Path, model: Path, output: Path, workers: int = 1) -> PrepareConfig:
    return PrepareConfig(
        data_path=(str(source),),
        model_name_or_path=str(model),
        output_dir=str(output),
        num_workers=workers,
        eval_fraction=0.2,
        model_max_length=128,
    )


def arguments(config: PrepareConfig) -> list[str]:
    """Return the command line of a configuration that ``config_of`` made."""
    return [
        *("prepare", "--data-path", *config.data_path),
        *("--model-name-or-path", config.model_name_or_path, "--output-dir", config.output_dir),
        *("--num-workers", str(config.num_workers), "--eval-fraction", "0.2"),
        *("--model-max-length", "128"),
    ]


@pytest.fixture(scope="module")
def undisturbed(
    source: Path, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Every file of the prepared folder that a run left alone makes."""
    output = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch)
        found = contents(pipeline.prepare(config_of(source, tiny_t5, output)))
    assert sum(name.endswith(".arrow") for name in found) > 10
    return found


def chunks_of(output: Path) -> dict[str, int]:
    """Return the inodes of the files of the parts that are there."""
    return {
        str(file.relative_to(output)): file.stat().st_ino
        for chunk in output.glob(".chunks/??/*/chunk.json")
        for file in chunk.parent.iterdir()
    }


def check_visible(output: Path, undisturbed: dict[str, bytes]) -> int:
    """What is visible is whole; return how many folders there are."""
    folders = visible(output)
    for folder in folders:
        assert contents(folder) == undisturbed
        read_manifest(folder)
    return len(folders)


# --- kills ----------------------------------------------------------------------------------------

FORKS = f"""
import json, os, signal, sys, time
from pipeline.prepare import preparation
from pipeline.prepare import stage
from pipeline.config import PrepareConfig
{code_for_small()}

def run(options):
    # The leader of a group, so that a test can see to it that nothing is left behind.
    os.setpgid(0, 0)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    code = 1
    try:
        stage.prepare(PrepareConfig(**options))
        code = 0
    finally:
        os._exit(code)

for line in sys.stdin:
    delay, options = json.loads(line)
    began = time.monotonic()
    child = os.fork()
    if not child:
        run(options)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - began]), flush=True)
"""
"""Reads how long a run may last and its options; forks it, kills it, says how it ended.

Imports are done once, so a kill strikes in the work itself.
"""


class Killer:
    """Starts runs in another process and kills them."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, config: PrepareConfig, delay: float | None = None) -> tuple[int, float]:
        """Return the exit code of a run (-9: killed) and the seconds it took."""
        options = {
            name: getattr(config, name)
            for name in (
                *("data_path", "model_name_or_path", "output_dir", "num_workers"),
                *("eval_fraction", "model_max_length"),
            )
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([delay, options]) + "\n")
        self._process.stdin.flush()
        code, seconds = json.loads(self._process.stdout.readline())
        return code, seconds


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Killer(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def kill_until_one_gets_through(
    killer: Killer,
    config: PrepareConfig,
    undisturbed: dict[str, bytes],
    *,
    longest: float,
    draw: random.Random,
) -> int:
    """Kill runs at random moments until one ends by itself; return how many were killed."""
    output = Path(config.output_dir)
    before: dict[str, int] = {}
    for kills in range(200):
        delay = draw.uniform(0, longest)
        code, _ = killer.run(config, delay)
        check_visible(output, undisturbed)
        after = chunks_of(output)
        assert before.keys() <= after.keys(), "a finished part is gone"
        assert {name: after[name] for name in before} == before, "a finished part was remade"
        before = after
        if code == 0:
            assert check_visible(output, undisturbed) == 1
            assert leftovers(output) == []
            used = {p.stat().st_ino for p in visible(output)[0].rglob("*.arrow")}
            assert used <= set(before.values()), "a shard is no part"
            return kills
        assert code == -signal.SIGKILL
        longest *= 1.05  # so that it ends
    raise AssertionError("no run got through")


def check_kills(
    killer: Killer,
    config: PrepareConfig,
    undisturbed: dict[str, bytes],
    *,
    longest: Sequence[float] = (1.0,),
    at_least: int,
) -> None:
    """Kill so many runs at random moments; ``longest`` is in times of a run that is left alone."""
    draw = random.Random(os.urandom(8))
    output = Path(config.output_dir)
    alone = dataclasses.replace(config, output_dir=str(output / "alone"))
    code, seconds = killer.run(alone)
    assert code == 0
    assert check_visible(output / "alone", undisturbed) == 1
    for series in itertools.count():
        config = dataclasses.replace(config, output_dir=str(output / str(series)))
        kills = kill_until_one_gets_through(
            killer, config, undisturbed, longest=draw.choice(longest) * seconds, draw=draw
        )
        assert pipeline.prepare(config) == visible(output / str(series))[0]
        at_least -= kills
        if at_least <= 0:
            break
        if not kills:  # the machine was slower while the run was timed than it is now
            seconds /= 2


def test_runs_killed_at_random_moments_leave_nothing_wrong(
    killer: Killer, source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    check_kills(killer, config_of(source, tiny_t5, tmp_path), undisturbed, at_least=2)


@pytest.mark.slow
def test_runs_killed_at_many_random_moments_leave_nothing_wrong(
    killer: Killer, source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    config = config_of(source, tiny_t5, tmp_path)
    check_kills(killer, config, undisturbed, longest=(0.3, 0.6, 1.2), at_least=50)


@pytest.mark.slow
def test_runs_with_workers_killed_at_random_moments_leave_nothing_wrong(
    killer: Killer, source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    config = config_of(source, tiny_t5, tmp_path, workers=2)
    check_kills(killer, config, undisturbed, at_least=12)


STOPS = f"""
import os, signal, sys
from pathlib import Path
from pipeline.prepare import preparation
from pipeline.prepare import stage
from pipeline.store import atomic
from pipeline.store import manifest
from pipeline.store import chunk_cache as parts
{code_for_small()}
what, after, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
calls = 0

def struck(original):
    def call(*args, **options):
        global calls
        calls += 1
        if calls > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)
    return call

owner, name = {{
    "fsync": (os, "fsync"),
    "rename": (Path, "rename"),
    "replace": (Path, "replace"),
    "link": (os, "link"),
    "manifest": (preparation, "write_manifest"),
    "publish": (preparation, "publish_folder"),
    "close": (local.LocalEngine, "close"),
    "remember": (stage.PreparedCache, "remember"),
}}[what]
setattr(owner, name, struck(getattr(owner, name)))
from pipeline.cli import run
sys.exit(run(arguments))
"""
"""Kills itself at a certain call of a certain function."""


def run_and_stop(config: PrepareConfig, what: str, after: int) -> int:
    command = [sys.executable, "-c", STOPS, what, str(after), *arguments(config)]
    return subprocess.run(command, capture_output=True).returncode


@pytest.mark.parametrize(
    ("what", "after", "num_visible"),
    [
        ("fsync", 20, 0),
        ("link", 5, 0),
        ("manifest", 0, 0),
        ("publish", 0, 0),
        pytest.param("close", 0, 1, id="published, but not yet cleared up"),
        pytest.param("remember", 0, 1, id="published, but not yet remembered"),
    ],
)
def test_a_run_killed_at_this_moment_leaves_nothing_wrong(
    source: Path,
    tiny_t5: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    what: str,
    after: int,
    num_visible: int,
) -> None:
    config = config_of(source, tiny_t5, tmp_path / "processed")
    assert run_and_stop(config, what, after) == -signal.SIGKILL
    assert check_visible(tmp_path / "processed", undisturbed) == num_visible
    before = chunks_of(tmp_path / "processed")
    assert before
    assert contents(pipeline.prepare(config)) == undisturbed
    assert before.items() <= chunks_of(tmp_path / "processed").items()
    assert leftovers(tmp_path / "processed") == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fsync", "rename", "replace", "link"])
def test_a_run_killed_at_any_call_leaves_nothing_wrong(
    source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes], what: str
) -> None:
    after = code = 0
    while code != 0 or after == 0:
        config = config_of(source, tiny_t5, tmp_path / str(after))
        code = run_and_stop(config, what, after)
        check_visible(tmp_path / str(after), undisturbed)
        before = chunks_of(tmp_path / str(after))
        assert contents(pipeline.prepare(config)) == undisturbed
        assert before.items() <= chunks_of(tmp_path / str(after)).items()
        assert leftovers(tmp_path / str(after)) == []
        shutil.rmtree(tmp_path / str(after))
        after += 3 if what == "fsync" else 1
    assert after > 10


def test_a_worker_that_is_killed_ends_the_run_with_one_line(
    source: Path,
    tiny_t5: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Pool(workers_module.ProcessPoolExecutor):
        parts = 0

        def submit(self, function: Any, /, *args: Any) -> Any:
            future = super().submit(function, *args)
            if function is workers_module._run and args[0] == "encode":
                Pool.parts += 1
                if Pool.parts <= 3:
                    future.result()
                elif Pool.parts == 4:  # once: those that died may be gone, or be other processes
                    for pid in list(self._processes):
                        os.kill(pid, signal.SIGKILL)
            return future

    config = config_of(source, tiny_t5, tmp_path / "processed", workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(workers_module, "ProcessPoolExecutor", Pool)
        with pytest.raises(DuetError, match="a worker process died"):
            pipeline.prepare(config)
    assert visible(tmp_path / "processed") == []
    assert leftovers(tmp_path / "processed") == []
    before = chunks_of(tmp_path / "processed")
    assert len({Path(name).parent for name in before}) >= 3
    assert contents(pipeline.prepare(config)) == undisturbed
    assert before.items() <= chunks_of(tmp_path / "processed").items()


def test_a_worker_that_dies_before_the_next_one_starts_is_one_line(
    source: Path, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool(workers_module.ProcessPoolExecutor):
        def submit(self, *_: Any) -> Any:
            raise BrokenProcessPool("a process ended abruptly")

    monkeypatch.setattr(workers_module, "ProcessPoolExecutor", Pool)
    with pytest.raises(DuetError, match="a worker process died"):
        pipeline.prepare(config_of(source, tiny_t5, tmp_path, workers=2))


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    if os.name != "posix" or os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, free: int) -> Path:
    """Leave so many bytes free."""
    ballast = disk / "ballast"
    size = shutil.disk_usage(disk).free - free
    ballast.write_bytes(bytes(max(size, 0)))
    return ballast


def fails_for_want_of_space(config: PrepareConfig, undisturbed: dict[str, bytes]) -> bool:
    output = Path(config.output_dir)
    try:
        pipeline.prepare(config)
    except OutputError as error:
        assert FULL in str(error)
        check_visible(output, undisturbed)  # nothing but what was whole before the disk was full
        assert leftovers(output) == []
        return True
    assert check_visible(output, undisturbed) == 1
    return False


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_sooner_or_later(
    disk: Path, source: Path, tiny_t5: Path, undisturbed: dict[str, bytes], workers: int
) -> None:
    failures = finished = 0
    for free in (0, 16, 100, 160, 220, 280, 1_000):
        output = disk / "processed"
        config = config_of(source, tiny_t5, output, workers)
        ballast = fill(disk, free << 10)
        failed = fails_for_want_of_space(config, undisturbed)
        failures += failed
        before = chunks_of(output)
        finished += bool(before) and failed
        ballast.unlink()
        assert contents(pipeline.prepare(config)) == undisturbed
        assert before.items() <= chunks_of(output).items(), "a finished part was remade"
        assert leftovers(output) == []
        shutil.rmtree(output)
    assert failures >= 3
    assert finished >= 1, "no run got as far as to finish a part"


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_moment(
    disk: Path, source: Path, tiny_t5: Path, undisturbed: dict[str, bytes]
) -> None:
    failures, free = 0, 0
    while True:
        config = config_of(source, tiny_t5, disk / "processed")
        ballast = fill(disk, free)
        failed = fails_for_want_of_space(config, undisturbed)
        failures += failed
        before = chunks_of(disk / "processed")
        ballast.unlink()
        assert contents(pipeline.prepare(config)) == undisturbed
        assert before.items() <= chunks_of(disk / "processed").items()
        shutil.rmtree(disk / "processed")
        free += 4096
        if not failed:
            break
    assert failures > 30


class FailsAtCall:
    """Makes a function raise ENOSPC from a certain call on."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError(28, FULL)
            return original(*args, **options)

        return call


# What is written with, apart from what cleaning up needs.
WRITES = ((_HashingFile, "write"), (os, "fsync"), (Path, "mkdir"), (Path, "write_text"))


def fails_at_call(
    config: PrepareConfig, undisturbed: dict[str, bytes], writes: Sequence[Any], after: int
) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        fails = FailsAtCall(after)
        for owner, name in writes:
            patch.setattr(owner, name, fails(getattr(owner, name)))
        return fails_for_want_of_space(config, undisturbed)


def check_failing_at_call(
    source: Path, tiny_t5: Path, output: Path, undisturbed: dict[str, bytes], after: int
) -> bool:
    config = config_of(source, tiny_t5, output)
    failed = fails_at_call(config, undisturbed, WRITES, after)
    before = chunks_of(output)
    assert contents(pipeline.prepare(config)) == undisturbed
    assert before.items() <= chunks_of(output).items(), "a finished part was remade"
    assert leftovers(output) == []
    return failed


@pytest.mark.parametrize("after", [0, 1, 2, 5, 13, 40, 90])
def test_a_write_that_fails_publishes_nothing(
    source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes], after: int
) -> None:
    assert check_failing_at_call(source, tiny_t5, tmp_path / "out", undisturbed, after)


@pytest.mark.slow
def test_any_write_that_fails_publishes_nothing(
    source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    after = 0
    while check_failing_at_call(source, tiny_t5, tmp_path / str(after), undisturbed, after):
        shutil.rmtree(tmp_path / str(after))
        after += 1
    assert after > 100


# --- two runs at once -----------------------------------------------------------------------------

WAITS = f"""
import sys
from pipeline.prepare import preparation
{code_for_small()}
publish = preparation.publish_folder
def wait(*args):
    print("ready", flush=True)
    sys.stdin.readline()
    publish(*args)
preparation.publish_folder = wait
from pipeline.cli import run
sys.exit(run(sys.argv[1:]))
"""
"""Says when all is made but not published, and goes on when it is told to."""

PLAIN = f"""
import sys
from pipeline.prepare import stage
{code_for_small()}
lock_in = stage.lock_in
def say_and_lock(folder, name):
    print("at the lock", file=sys.stderr, flush=True)
    return lock_in(folder, name)
stage.lock_in = say_and_lock
from pipeline.cli import run
sys.exit(run(sys.argv[1:]))
"""
"""Says when it asks for the lock."""


@contextlib.contextmanager
def started(code: str, config: PrepareConfig) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def waits_for_the_lock(process: "subprocess.Popen[str]") -> bool:
    """Wait until a run asks for the lock, and some more; tell whether it waits."""
    assert process.stderr is not None
    assert process.stderr.readline() == "at the lock\n"
    time.sleep(0.3)
    return process.poll() is None


def test_of_two_runs_at_once_one_works_and_the_other_takes_the_result(
    source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    output = tmp_path / "processed"
    config = config_of(source, tiny_t5, output)
    with started(WAITS, config) as first:
        assert first.stdout is not None and first.stdout.readline() == "ready\n"
        made = chunks_of(output)
        with started(PLAIN, config) as second:
            assert waits_for_the_lock(second)
            assert visible(output) == []
            outputs = [first.communicate("go on\n", 60), second.communicate("", 60)]
            assert (first.returncode, second.returncode) == (0, 0)
    (folder,) = visible(output)
    assert [out for out, _ in outputs] == [f"{folder}\n"] * 2
    found = contents(folder)
    assert found == undisturbed
    assert chunks_of(output) == made
    assert not any("note:" in err for _, err in outputs)
    assert leftovers(output) == []


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_lock_whose_owner_was_killed_does_not_block(
    source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes], workers: int
) -> None:
    output = tmp_path / "processed"
    config = config_of(source, tiny_t5, output, workers)
    with started(WAITS, config) as first:
        assert first.stdout is not None and first.stdout.readline() == "ready\n"
        with started(PLAIN, config) as second:
            assert waits_for_the_lock(second)
            made = chunks_of(output)
            first.kill()
            first.wait(30)
            out, _ = second.communicate("", 60)
            assert second.returncode == 0
    (folder,) = visible(output)
    assert out == f"{folder}\n"
    found = contents(folder)
    assert found == undisturbed
    assert chunks_of(output) == made, "finished parts were made again"
    assert leftovers(output) == []


@pytest.mark.slow
def test_several_runs_of_several_inputs_at_once_share_their_parts(
    source: Path, tiny_t5: Path, tmp_path: Path
) -> None:
    lines = source.read_text().splitlines(keepends=True)
    configs = []
    for i in range(3):
        path = tmp_path / f"{i}" / "x.jsonl"
        path.parent.mkdir()
        path.write_text("".join(lines[:-1] if i == 1 else lines[i:]))
        configs.append(config_of(path, tiny_t5, tmp_path / "processed"))
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            runs = [stack.enter_context(started(PLAIN, c)) for c in configs for _ in range(2)]
            results = [(*run.communicate("", 120), run.returncode) for run in runs]
        assert [(code, err) for _, err, code in results if code] == []
        for i, config in enumerate(configs):
            alone = config_of(Path(config.data_path[0]), tiny_t5, tmp_path / f"alone{i}")
            expected = contents(pipeline.prepare(alone))
            for out, _, _ in results[2 * i : 2 * i + 2]:
                assert contents(Path(out.strip())) == expected
        shutil.rmtree(tmp_path / "processed")


OUTLIVES = """
import sys, time
from pathlib import Path
from pipeline.store.atomic import hold_folder
folder = Path(sys.argv[1])
assert hold_folder(folder)
print("holds", flush=True)
ends = time.monotonic() + 0.3
while time.monotonic() < ends and len(list(folder.parent.glob(".tmp-*"))) == 1:
    time.sleep(0.01)
late = folder / "chunk-1-1" / "train.arrow"
late.parent.mkdir(parents=True)
late.write_bytes(b"half")
print(len(list(folder.parent.glob(".tmp-*"))))
"""
"""Writes into a folder that it holds, as soon as another run has begun or could have, and ends."""


def test_a_run_waits_for_the_workers_of_a_killed_one(
    source: Path, tiny_t5: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    output = tmp_path / "processed"
    folder = pipeline.prepare(config_of(source, tiny_t5, output))
    (index,) = output.glob(".index/*.json")
    index.unlink()
    shutil.rmtree(folder)
    left = output / f".tmp-{index.stem}-1"  # the killed run's
    left.mkdir()
    command = [sys.executable, "-c", OUTLIVES, str(left)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == "holds\n"
        assert contents(pipeline.prepare(config_of(source, tiny_t5, output))) == undisturbed
        assert worker.stdout.read() == "1\n", "the next run did not wait"
    assert worker.returncode == 0
    assert leftovers(output) == []


def test_workers_hold_their_runs_temporary_folder(
    source: Path, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, publish = tmp_path / "processed", preparation.publish_folder

    def check_and_publish(temporary: Path, final: Path) -> None:
        with pytest.raises(OutputError, match="another process"), locked_folder(temporary.parent):
            pass
        publish(temporary, final)

    monkeypatch.setattr(preparation, "publish_folder", check_and_publish)
    pipeline.prepare(config_of(source, tiny_t5, output, workers=2))


def test_who_comes_after_a_folder_was_taken_away_does_not_hold_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    remove_folder(tmp_path / "run")
    assert not hold_folder(tmp_path / "run")
