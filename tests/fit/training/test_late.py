"""Steps that are launched before the last one's result is read are the same run to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import FitConfig
from pipeline.errors import ModelError
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.stage import fit
from pipeline.fit.training.step import StepResult, can_read_late
from pipeline.fit.training.trainer import Trainer, TrainerCallback
from scripts.ranks import run_in
from tests.fit.helpers import assert_same_weights, changed, log_of


class Late(TrainerCallback):
    """Reads results late, as on a GPU; spoils the loss of one forward pass; notes what happens."""

    def __init__(self, *, late: bool = True, spoil: int | None = None) -> None:
        self.late, self.spoil = late, spoil
        self.events: list[tuple[str, int]] = []
        self.weights: dict[str, list[torch.Tensor]] = {}
        self.moments: list[Any] = []
        self.passes = 0

    def on_train_begin(self, trainer: Trainer) -> None:
        self.trainer, self.state = trainer, trainer.state
        trainer.step.late = self.late
        trainer.model.register_forward_hook(self.forward)

    def forward(self, model: Any, args: Any, loss: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return loss * float("nan") if self.passes == self.spoil else loss

    def on_step_begin(self, step: int) -> None:
        self.events.append(("begin", step))
        if step == 3:
            self.before = self.snapshot()

    def on_step_end(self, step: int, result: StepResult) -> None:
        self.events.append(("end", step))

    def on_save(self, step: int) -> None:
        self.events.append(("save", step))

    def snapshot(self) -> list[torch.Tensor]:
        return [weight.detach().clone() for weight in self.trainer.model.parameters()]


@pytest.fixture
def sparse(config: FitConfig) -> FitConfig:
    """Eight steps, an entry in the log after the fifth, a checkpoint after the sixth."""
    return changed(
        config,
        max_steps=8,
        logging_steps=5,
        save_strategy="steps",
        save_steps=6,
        per_device_train_batch_size=2,
        train_batch_size=4,
    )


def test_a_run_is_the_same_to_the_bit(sparse: FitConfig, tmp_path: Path) -> None:
    usual, late = Late(late=False), Late()
    one = fit(sparse, callback=usual)
    two = fit(changed(sparse, output_dir=str(tmp_path / "late")), callback=late)
    assert log_of(one) == log_of(two)
    assert_same_weights(one, two)
    for name in ("optimizer.pt", "scheduler.pt"):
        first, second = (torch.load(out / "checkpoint-6" / name) for out in (one, two))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert usual.events[:4] == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]
    # The second step is launched before the first one's result is read. What an entry or a
    # checkpoint is of is read before it is made.
    assert late.events[:4] == [("begin", 1), ("begin", 2), ("end", 1), ("begin", 3)]
    at = late.events.index(("save", 6))
    assert late.events[at - 2 : at + 2] == [("begin", 6), ("end", 6), ("save", 6), ("begin", 7)]


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_no_number_changes_nothing(sparse: FitConfig, late: bool) -> None:
    """Two micro-batches a step, at least: the first of the third step is spoilt."""
    probe = Late(late=late)
    fit(sparse, callback=probe)
    callback = Late(late=late, spoil=2 * 2 + 1)
    with pytest.raises(ModelError, match="diverged") as caught:
        fit(changed(sparse, output_dir=sparse.output_dir + "-2"), callback=callback)
    assert caught.value.where == "step 3"
    assert "loss nan in row" in str(caught.value.got)
    launched = max(step for name, step in callback.events if name == "begin")
    assert launched == (4 if late else 3)
    state: RunState = callback.state
    assert state.step == 2
    for now, before in zip(callback.snapshot(), callback.before, strict=True):
        assert torch.equal(now, before)
    assert not list(Path(sparse.output_dir + "-2").glob("checkpoint-*"))


def test_it_is_for_a_gpu_and_fused_optimizers() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    fused, plain = make([weight], fused=True), make([weight], fused=False)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert can_read_late(fused, cuda)
    assert not can_read_late(plain, cuda)
    assert not can_read_late(fused, cpu)


def train_both(usual: FitConfig, late: FitConfig) -> None:
    torch.distributed.init_process_group("gloo")  # which both runs join
    fit(usual, callback=Late(late=False))
    fit(late, callback=Late())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", ["", "full_shard"])
def test_two_processes(sparse: FitConfig, tmp_path: Path, fsdp: str) -> None:
    config = changed(sparse, fsdp=fsdp, max_steps=4, logging_steps=3, save_strategy="no")
    usual, late = (changed(config, output_dir=str(tmp_path / name)) for name in ("usual", "late"))
    run_in(2, train_both, usual, late, folder=tmp_path / "said")
    one, two = Path(usual.output_dir), Path(late.output_dir)
    assert log_of(one) == log_of(two)
    assert_same_weights(one, two)
