"""A run that is asked to stop, stops after its step, is saved, and resumes to the bit."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.config import FitConfig
from pipeline.errors import ModelError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import micro_batcher_for
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.model.loading import build_model
from pipeline.fit.stage import fit
from pipeline.tokenizer import TextTokenizer
from scripts.ranks import Ranks
from tests.fit.helpers import (
    Hooks,
    assert_same_weights,
    changed,
    log_of,
    make_rows,
    with_config,
    write_prepared,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and so does all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def signal_at(step: int, number: signal.Signals) -> Hooks:
    """Send this process a signal when a step begins."""
    return Hooks(step_begin=lambda now: now == step and os.kill(os.getpid(), number))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_stopped_run_goes_on_to_the_bit(
    config: FitConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    config = changed(config, logging_steps=4)
    whole = fit(changed(config, output_dir=str(tmp_path / "whole")))
    step, handlers = random.randint(1, 5), [signal.getsignal(each) for each in signal.Signals]
    with pytest.raises(SystemExit) as caught:
        fit(config, callback=signal_at(step, number))
    assert caught.value.code == code
    assert handlers == [signal.getsignal(each) for each in signal.Signals]
    assert [path.name for path in Path(config.output_dir).glob("*checkpoint-*")] == [
        f"checkpoint-{step}"
    ]
    said = f"{number.name}: stopped after step {step} of 6, saved as checkpoint-{step}; "
    assert said + "the same command resumes from there" in capsys.readouterr().err
    torch.manual_seed(12345)  # whatever happens in between
    out = fit(config)
    assert log_of(out) == log_of(whole)
    assert_same_weights(out, whole)


def test_a_run_that_is_asked_in_its_last_step_ends_as_always(config: FitConfig) -> None:
    out = fit(config, callback=signal_at(6, signal.SIGTERM))
    assert (out / "trainer_state.json").is_file()


@pytest.mark.parametrize(
    ("turn", "step"),
    [
        pytest.param(2, 2, marks=pytest.mark.slow),
        (7, 4),
        pytest.param(11, 6, marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_ends_at_once_and_is_done_by_the_resumed_run(
    config: FitConfig,
    tmp_path: Path,
    turn: int,
    step: int,
) -> None:
    """Four batches each: the third evaluation is that after the last step."""
    config = changed(
        config,
        per_device_eval_batch_size=1,
        group_by_length=False,
        eval_strategy="steps",
        eval_steps=2,
        output_dir=str(tmp_path / "whole"),
    )
    whole = fit(config)
    parts = changed(config, output_dir=str(tmp_path / "parts"))
    turns: list[int] = []

    def signalled() -> None:
        turns.append(len(turns) + 1)
        if turns[-1] == turn:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        fit(parts, callback=Hooks(prediction_step=signalled))
    assert caught.value.code == 143
    assert len(turns) == turn, "no other batch begins"
    out = Path(parts.output_dir)
    assert [path.name for path in out.glob("*checkpoint-*")] == [f"checkpoint-{step}"]
    assert log_of(fit(parts)) == log_of(whole)
    assert_same_weights(out, whole)


def test_a_signal_in_a_step_before_an_evaluation_does_not_begin_it(
    config: FitConfig, tmp_path: Path
) -> None:
    config = changed(config, eval_strategy="steps", eval_steps=2)
    whole = fit(changed(config, output_dir=str(tmp_path / "whole")))
    turns: list[int] = []
    hooks = Hooks(
        step_begin=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM),
        prediction_step=lambda: turns.append(1),
    )
    with pytest.raises(SystemExit):
        fit(config, callback=hooks)
    assert not turns
    assert log_of(fit(config)) == log_of(whole)


def test_the_second_signal_ends_the_process_but_one_passed_on_twice_does_not() -> None:
    code = """
import os, signal, time
from pipeline.fit.distributed.signals import GracefulShutdown
with GracefulShutdown() as stop:
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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Start the command in so many processes; nothing of it is left behind."""
    started: list[Ranks] = []

    def begin(count: int, *flags: str) -> Ranks:
        folder = tmp_path / f"said-{len(started)}"
        started.append(Ranks(count, main, ["fit", *flags], folder=folder))
        return started[-1]

    yield begin
    for ranks in started:
        ranks.end(timeout=0)


def flags_of(config: FitConfig, **changes: Any) -> list[str]:
    names = ("data_path", "model_name_or_path", "output_dir", "max_steps", "learning_rate")
    names += ("train_batch_size", "per_device_train_batch_size", "logging_steps", "save_strategy")
    values = {name: getattr(config, name) for name in names} | changes
    return [
        f"--{name.replace('_', '-')}={value}"
        for name, some in values.items()
        for value in (some if isinstance(some, tuple) else (some,))
    ]


@pytest.fixture
def long(config: FitConfig) -> FitConfig:
    """A run of 60 steps."""
    return changed(config, max_steps=60, train_batch_size=4, learning_rate=1e-3, eval_strategy=None)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_processes_stop_together_wherever_the_signal_went(
    long: FitConfig, tmp_path: Path, start: Callable[..., Ranks], count: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, stop in ((whole, False), (parts, True), (parts, False)):
        ranks = start(count, *flags_of(long, output_dir=out))
        if stop:
            ranks.wait_for(f"step {random.randint(1, 40)}/60: ")
            os.kill(ranks.processes[-1].pid or 0, signal.SIGTERM)
        assert ranks.end() == [143 if stop else 0] * count, ranks.said()
        if stop:
            words = r"SIGTERM: stopped after step (\d+) of 60, saved as checkpoint-\1"
            at = re.search(words, ranks.said())
            assert at is not None, ranks.said()
            assert [path.name for path in parts.glob("*checkpoint-*")] == [f"checkpoint-{at[1]}"]
    assert log_of(whole) == log_of(parts)
    assert_same_weights(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_processes_end_an_evaluation_together(
    long: FitConfig,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    start: Callable[..., Ranks],
    count: int,
) -> None:
    """400 batches: the signal comes in the midst of them, to the last process."""
    rows = {"train": make_rows(tokenizer, 20, 0), "eval": make_rows(tokenizer, 400, 1)}
    data = write_prepared(tmp_path / "data", tokenizer, rows)
    long = changed(long, data_path=str(data), max_steps=4)
    flags = ("--per-device-eval-batch-size=1", "--eval-steps=3", "--group-by-length=False")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, stop in ((whole, False), (parts, True), (parts, False)):
        ranks = start(count, *flags_of(long, output_dir=out), *flags)
        if stop:
            ranks.wait_for("step 3/4: ")
            os.kill(ranks.processes[-1].pid or 0, signal.SIGTERM)
        assert ranks.end() == [143 if stop else 0] * count, ranks.said()
        assert ranks.said().count("eval_loss ") == 2 * (not stop)
        if stop:
            assert [path.name for path in parts.glob("*checkpoint-*")] == ["checkpoint-3"]
    assert log_of(whole) == log_of(parts)
    assert_same_weights(whole, parts)


@pytest.fixture
def poisoned(still: Path, prepared: Path, tmp_path: Path) -> tuple[Path, int]:
    """A model with a vector that is no number, of a token that few rows have; and the token."""
    dataset = SupervisedDataset(prepared)
    rows = [tokens_of(dataset, i) for i in range(len(dataset))]
    counts = {token: sum(token in row for row in rows) for token in set.union(*rows)}
    token = min(counts, key=lambda token: (counts[token], token))
    folder = with_config(still, tmp_path / "poisoned")
    weights = load_file(folder / "model.safetensors")
    weights["shared.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, token


def tokens_of(dataset: SupervisedDataset, row: int) -> set[int]:
    """Return what the model looks up, in both stacks."""
    return {*dataset[row]["input_ids"].tolist(), *dataset[row]["labels"].tolist()}


def rows_to_blame(config: FitConfig, token: int, tokenizer: TextTokenizer) -> tuple[int, list[int]]:
    """Return the first step that meets a token, and the rows of the micro-batches with it."""
    dataset = SupervisedDataset(config.data_path[0])
    plan = BatchSampler(*dataset.lengths, global_batch_size=4, seed=config.seed)
    model = build_model(config.model, tokenizer)
    micro_batcher = micro_batcher_for(dataset, model.config, 1, torch.device("cpu"))
    for step in range(9):
        parts = [
            part for balanced in micro_batcher.balance(plan.rows_of(step), 1) for part in balanced
        ]
        bad = [part for part in parts if any(token in tokens_of(dataset, int(i)) for i in part)]
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
    long: FitConfig, poisoned: tuple[Path, int], start: Callable[..., Ranks]
) -> None:
    flags = flags_of(long, model_name_or_path=poisoned[0], per_device_train_batch_size=1)
    ranks = start(2, *flags)
    assert ranks.end() == [1, 1]
    first, second = (re.findall("^error: .*$", ranks.said(i), re.MULTILINE) for i in (0, 1))
    assert first == second
    assert len(first) == 1
    assert "loss nan in row" in first[0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_when_a_process_is_killed_the_others_end_with_the_reason(
    long: FitConfig, start: Callable[..., Ranks], count: int
) -> None:
    ranks = start(count, *flags_of(long, max_steps=5000))
    ranks.wait_for("step 3/5000: ")
    ranks.processes[-1].kill()
    since = time.monotonic()
    codes = ranks.end(timeout=60)
    assert time.monotonic() - since < 60
    assert codes == [1] * (count - 1) + [-signal.SIGKILL]
    for rank in range(count - 1):
        assert "Traceback" not in ranks.said(rank)
        (line,) = re.findall("^error: .*$", ranks.said(rank), re.MULTILINE)
        assert line.startswith("error: another process of the run has ended; where: ")
        assert "Connection" in line


@pytest.mark.slow
def test_processes_killed_at_any_moment_lose_no_more_than_steps(
    long: FitConfig, tmp_path: Path, start: Callable[..., Ranks]
) -> None:
    """Both at once, as when a machine goes down; a checkpoint is written every other step."""
    long = changed(long, logging_steps=7)
    flags = ("--save-strategy=steps", "--save-steps=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ranks = start(2, *flags_of(long, output_dir=whole), *flags)
    since = time.monotonic()
    assert ranks.end() == [0, 0], ranks.said()
    took = time.monotonic() - since
    killed, seed = 0, random.randrange(1 << 32)
    moments = random.Random(seed)
    for _ in range(12):
        ranks = start(2, *flags_of(long, output_dir=parts), *flags)
        ranks.end(timeout=moments.uniform(0.25, 0.7) * took)  # then they are killed
        newest = max((int(p.name[11:]) for p in parts.glob("checkpoint-*")), default=0)
        print(f"seed {seed}: killed, newest checkpoint {newest}")
        killed += 0 < newest < 60
    assert killed, "no kill met a run that had begun: the machine is too busy"
    ranks = start(2, *flags_of(long, output_dir=parts), *flags)
    assert ranks.end() == [0, 0], ranks.said()
    assert log_of(whole) == log_of(parts)
    assert_same_weights(whole, parts)
    assert not list(parts.glob(".*"))


@pytest.mark.slow
def test_a_launcher_that_is_asked_to_stop(long: FitConfig, tmp_path: Path) -> None:
    """As a scheduler does it: SIGTERM to torchrun, which passes it on and has a code of its own."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node=2", "-m", "pipeline", "fit"]
    for out, stop in ((whole, False), (parts, True), (parts, False)):
        with subprocess.Popen(
            [*launcher, *flags_of(long, output_dir=out, max_steps=150)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        ) as process:
            assert process.stderr is not None
            said = ""
            while stop and "step 5/150: " not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            if stop:
                process.send_signal(signal.SIGTERM)
            said += process.communicate(timeout=300)[1]
        assert process.returncode == (1 if stop else 0), said
        if stop:
            at = re.search(r"SIGTERM: stopped after step (\d+) of 150, saved as checkpoint-", said)
            assert at is not None, said
            assert [path.name for path in parts.glob("*checkpoint-*")] == [f"checkpoint-{at[1]}"]
    assert log_of(whole) == log_of(parts)
    assert_same_weights(whole, parts)
