"""Checkpoints are written while the steps go on, from a copy that they do not change."""

import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import FitConfig
from pipeline.errors import ModelError, OutputError
from pipeline.fit.checkpoint.format import find_checkpoint
from pipeline.fit.checkpoint.staging import Staging
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.stage import fit
from tests.fit.helpers import Hooks, assert_same_weights, changed, log_of

SECONDS = 30.0


@pytest.fixture
def run(config: FitConfig) -> FitConfig:
    """Six steps with dropout, saved at three."""
    return changed(config, save_strategy="steps", save_steps=3, weight_decay=0.1)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "adafactor", "muon"])
def test_what_is_written_late_is_the_state_at_its_step(
    run: FitConfig, tmp_path: Path, optim: str
) -> None:
    run = changed(run, optim=optim, output_dir=str(tmp_path / "whole"))
    late = threading.Event()
    hooks = Hooks(
        write=lambda step: (step == 3 and not late.wait(SECONDS)) and _fail(),
        step_begin=lambda step: step == 6 and late.set(),
    )
    whole = fit(run, callback=hooks)
    assert late.is_set()
    parts = shutil.copytree(whole, tmp_path / "parts")
    shutil.rmtree(parts / "checkpoint-6")
    (parts / "trainer_state.json").unlink()
    fit(changed(run, output_dir=str(parts)))
    assert log_of(parts) == log_of(whole)
    assert_same_weights(parts, whole)
    for name in ("optimizer.pt", "scheduler.pt"):
        one, other = (torch.load(out / "checkpoint-6" / name) for out in (whole, parts))
        assert str(one) == str(other)


def _fail() -> None:
    raise AssertionError("the steps did not go on")


def test_a_fault_in_writing_is_raised_after_the_step(run: FitConfig) -> None:
    steps: list[int] = []
    failed = threading.Event()

    def fail(step: int) -> None:
        failed.set()
        raise full()

    def begin(step: int) -> None:
        steps.append(step)
        if step >= 4:
            failed.wait(SECONDS)
            time.sleep(0.2)  # the thread has only to end

    with pytest.raises(OutputError, match="cannot write"):
        fit(run, callback=Hooks(step_begin=begin, write=fail))
    assert steps in ([1, 2, 3, 4], [1, 2, 3, 4, 5])  # the latter where the thread ended late
    assert not list(Path(run.output_dir).glob("checkpoint-*"))


def test_a_fault_of_the_last_writing_is_raised_at_the_end(run: FitConfig) -> None:
    def fail(step: int) -> None:
        if step == 6:
            raise full()

    with pytest.raises(OutputError, match="cannot write"):
        fit(run, callback=Hooks(write=fail))
    found = [path.name for path in Path(run.output_dir).glob("checkpoint-*")]
    assert found == ["checkpoint-3"]


def test_a_run_that_fails_finishes_the_checkpoint_first(
    run: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = threading.Event()

    def diverge(step: int) -> None:
        if step == 4:
            failing.set()
            raise ModelError("training diverged", where="step 4", got="nan", do="start again")

    wait = Hooks(write=lambda step: failing.wait(SECONDS) and time.sleep(0.2), step_begin=diverge)
    with pytest.raises(ModelError, match="diverged"):
        fit(run, callback=wait)
    found = find_checkpoint(Path(run.output_dir))
    assert found is not None
    assert found.state.step == 3


@pytest.mark.parametrize("kind", [OutputError, RuntimeError])
def test_what_ends_a_run_is_not_replaced_by_a_fault_in_writing(
    run: FitConfig, kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(step: int) -> None:
        raise full() if kind is OutputError else RuntimeError("Connection closed by peer")

    def diverge(step: int) -> None:
        if step == 4:
            raise ModelError("training diverged", where="step 4", got="nan", do="start again")

    late = threading.Event()
    hooks = Hooks(
        write=lambda step: late.wait(SECONDS) and fail(step),
        step_begin=lambda step: (step == 4 and late.set()) or diverge(step),
    )
    with pytest.raises(ModelError, match="diverged"):
        fit(run, callback=hooks)
    assert "note: the previous checkpoint was not written either: " in capsys.readouterr().err


def full() -> OutputError:
    return OutputError("cannot write", where="disk", got="full", do="free some space")


def test_a_process_that_is_lost_is_no_fault_of_the_disk(
    run: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are RuntimeErrors: of safetensors, and of the processes' connection."""
    first = HostGroup.run_on_first

    def lost(group: HostGroup, work: Any) -> Any:
        if work.__name__ == "mkdir":
            raise RuntimeError("Connection closed by peer")
        return first(group, work)

    monkeypatch.setattr(HostGroup, "run_on_first", lost)
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        fit(run)


def test_one_is_written_before_the_next_is_begun(
    run: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    there: list[list[str]] = []
    out = Path(run.output_dir)

    def look(step: int) -> None:
        there.append(sorted(path.name for path in out.glob("checkpoint-*")))
        time.sleep(0.05)

    fit(changed(run, save_steps=1, save_total_limit=2), callback=Hooks(write=look))
    kept = [[f"checkpoint-{step}" for step in range(max(1, n - 2), n)] for n in range(1, 7)]
    assert there == kept
    said = re.findall(
        r"^note: saved checkpoint-(\d) \(training paused ([\d.]+) s, written in ([\d.]+) s\)$",
        capsys.readouterr().err,
        re.MULTILINE,
    )
    assert [int(step) for step, _, _ in said] == [1, 2, 3, 4, 5, 6]
    assert all(float(seconds) >= 0.05 for _, _, seconds in said)


def test_a_copy_has_nothing_in_common_with_what_goes_on_and_takes_the_same_memory_again() -> None:
    staging = Staging()
    tensors = {"step": torch.ones(()), "exp_avg": torch.ones(2, 3), "q": torch.ones(5).bfloat16()}
    copies = staging.copy(tensors, {"step", "q"})
    assert copies.keys() == {"step", "q"}
    places = {name: copy.data_ptr() for name, copy in copies.items()}
    for tensor in tensors.values():
        tensor.zero_()
    assert torch.equal(copies["q"], torch.ones(5).bfloat16())
    assert float(copies["step"]) == 1.0
    again = staging.copy(tensors, {"step", "q"})
    assert {name: copy.data_ptr() for name, copy in again.items()} == places
    assert float(again["step"]) == 0.0
    larger = staging.copy(tensors | {"q": torch.ones(2, 7)}, {"q"})
    assert larger["q"].shape == (2, 7)
