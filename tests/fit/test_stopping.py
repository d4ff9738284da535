"""A run that is asked to stop, stops after its step, is saved, and goes on to the bit."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import FitConfig
from pipeline.errors import ModelError
from pipeline.fit import loop
from pipeline.fit.batching import StepPlan
from pipeline.fit.dataset import SupervisedDataset
from pipeline.fit.feeding import cutter_for
from pipeline.fit.model import load_model
from pipeline.fit.stage import fit
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import assert_same_weights, changed, log_of, with_config

ROOT = Path(__file__).resolve().parents[2]


def signal_at(
    step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """Send this process a signal when a step begins."""
    take = loop.TrainingStep.__call__

    def signalled(self: Any, feed: Any, now: int) -> Any:
        if now == step:
            os.kill(os.getpid(), number)
        return take(self, feed, now)

    monkeypatch.setattr(loop.TrainingStep, "__call__", signalled)
    return monkeypatch


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_stopped_run_goes_on_to_the_bit(
    config: FitConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    config = changed(config, logging_steps=4)
    whole = fit(changed(config, output_dir=str(tmp_path / "whole")))
    step, handlers = random.randint(1, 5), [signal.getsignal(each) for each in signal.Signals]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        signal_at(step, number, patch)
        fit(config)
    assert caught.value.code == code
    assert handlers == [signal.getsignal(each) for each in signal.Signals]
    assert [path.name for path in Path(config.output_dir).iterdir()] == [f"checkpoint-{step}"]
    said = f"{number.name}: stopped after step {step} of 6, saved as checkpoint-{step}; "
    assert said + "the same command goes on from there" in capsys.readouterr().err
    torch.manual_seed(12345)  # whatever happens in between
    out = fit(config)
    assert log_of(out) == log_of(whole)
    assert_same_weights(out, whole)


def test_a_run_that_is_asked_in_its_last_step_ends_as_always(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signal_at(6, signal.SIGTERM, patch)
        out = fit(config)
    assert (out / "trainer_state.json").is_file()


def test_the_second_signal_ends_the_process_but_one_passed_on_twice_does_not() -> None:
    code = """
import os, signal, time
from pipeline.fit.stopping import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.flags(), flush=True)
    time.sleep(0.6)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(9)
    print("still there")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "[1.0, 0.0]\n"
    assert done.stderr == "note: SIGTERM: stopping after this step; again: at once\n"


class Ranks:
    """Processes of one run without a launcher that would signal the others."""

    def __init__(self, count: int, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "pipeline", "fit", *flags],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    **{name: str(value) for name, value in shared.items() if count > 1},
                    **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}),
                },
                cwd=ROOT,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(count)
        ]

    def wait_for(self, words: str) -> str:
        """Return what the first process says up to some words."""
        said = ""
        assert self.processes[0].stderr is not None
        while words not in said:
            line = self.processes[0].stderr.readline()
            assert line, said
            said += line
        return said

    def end(self) -> tuple[list[int], list[str]]:
        """Return exit codes and what was said since, when all have ended."""
        said = [process.communicate(timeout=60)[1] for process in self.processes]
        return [process.returncode for process in self.processes], said


@pytest.fixture
def started() -> Iterator[list[Ranks]]:
    """What a test starts; nothing of it is left behind."""
    ranks: list[Ranks] = []
    yield ranks
    for each in ranks:
        for process in each.processes:
            process.kill()
            process.communicate()


def flags_of(config: FitConfig, **changes: Any) -> list[str]:
    names = ("data_path", "model_name_or_path", "output_dir", "max_steps", "learning_rate")
    names += ("train_batch_size", "per_device_train_batch_size", "logging_steps", "save_strategy")
    values = {name: getattr(config, name) for name in names} | changes
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


@pytest.fixture
def long(config: FitConfig) -> FitConfig:
    """A run of 60 steps."""
    return changed(config, max_steps=60, train_batch_size=4, learning_rate=1e-3, eval_strategy=None)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_processes_stop_together_wherever_the_signal_went(
    long: FitConfig, tmp_path: Path, started: list[Ranks], count: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, stop in ((whole, False), (parts, True), (parts, False)):
        started.append(Ranks(count, *flags_of(long, output_dir=out)))
        if stop:
            said = started[-1].wait_for(f"step {random.randint(1, 40)}/60: ")
            started[-1].processes[-1].send_signal(signal.SIGTERM)
        codes, ends = started[-1].end()
        assert codes == [143 if stop else 0] * count, ends
        if stop:
            said += ends[0]
            at = re.search(r"SIGTERM: stopped after step (\d+) of 60, saved as checkpoint-\1", said)
            assert at is not None, said
            assert [path.name for path in parts.iterdir()] == [f"checkpoint-{at[1]}"]
    assert log_of(whole) == log_of(parts)
    assert_same_weights(whole, parts)


@pytest.fixture
def poisoned(still: Path, prepared: Path, tmp_path: Path) -> tuple[Path, int]:
    """A model with a vector that is no number, of a token that few rows have; and the token."""
    dataset = SupervisedDataset(prepared)
    inputs = [set(dataset[i]["input_ids"].tolist()) for i in range(len(dataset))]
    counts = {token: sum(token in row for row in inputs) for token in set.union(*inputs)}
    token = min(counts, key=lambda token: (counts[token], token))
    folder = with_config(still, tmp_path / "poisoned")
    weights = load_file(folder / "model.safetensors")
    weights["shared.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, token


def rows_to_blame(config: FitConfig, token: int, tokenizer: TextTokenizer) -> tuple[int, list[int]]:
    """Return the first step that meets a token, and the rows of the micro-batches with it."""
    dataset = SupervisedDataset(config.data_path)
    plan = StepPlan(*dataset.lengths, rows_per_step=4, seed=config.seed)
    model = load_model(config, tokenizer, lambda text: None)
    cutter = cutter_for(dataset, model.config, 1, torch.device("cpu"))
    for step in range(9):
        parts = [part for dealt in cutter.deal(plan.rows_of(step), 1) for part in dealt]
        bad = [part for part in parts if any(token in dataset[int(i)]["input_ids"] for i in part)]
        if bad:
            assert len(bad) < len(parts)
            return step + 1, sorted(np.concatenate(bad).tolist())
    raise AssertionError("no step has it")


def test_a_loss_that_is_no_number_names_its_rows(
    config: FitConfig, poisoned: tuple[Path, int], tokenizer: TextTokenizer
) -> None:
    folder, token = poisoned
    config = changed(
        config,
        model_name_or_path=str(folder),
        per_device_train_batch_size=1,
        train_batch_size=4,
        learning_rate=1e-5,
    )
    step, rows = rows_to_blame(config, token, tokenizer)
    with pytest.raises(ModelError, match="diverged") as caught:
        fit(config)
    assert caught.value.where == f"step {step}"
    names = ", ".join(f"{row} (c{row})" for row in rows)
    assert caught.value.got == f"loss nan in row{'s' * (len(rows) > 1)} {names}"


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_told_alike_by_all(
    long: FitConfig, poisoned: tuple[Path, int], started: list[Ranks]
) -> None:
    flags = flags_of(long, model_name_or_path=poisoned[0], per_device_train_batch_size=1)
    started.append(Ranks(2, *flags))
    codes, said = started[0].end()
    assert codes == [1, 1]
    first, second = (re.findall("^error: .*$", text, re.MULTILINE) for text in said)
    assert first == second
    assert len(first) == 1
    assert "loss nan in row" in first[0]


@pytest.mark.slow
def test_when_a_process_is_killed_the_others_end_with_the_reason(
    long: FitConfig, started: list[Ranks]
) -> None:
    started.append(Ranks(2, *flags_of(long, max_steps=5000)))
    started[0].wait_for("step 3/5000: ")
    started[0].processes[1].kill()
    since = time.monotonic()
    codes, said = started[0].end()
    assert time.monotonic() - since < 60
    assert codes == [1, -signal.SIGKILL]
    (line,) = [line for line in said[0].splitlines() if not line.startswith(("step", "note"))]
    assert line.startswith("error: another process of the run has ended; where: ")
    assert "Connection" in line
