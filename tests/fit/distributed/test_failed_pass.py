"""A micro-batch that does not fit, in a sharded model, leaves no gradient wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import FitConfig
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.distributed.fsdp import Sharding, full_tensor, shard
from pipeline.fit.estimate.memory_probe import MemoryProbe
from pipeline.fit.model.loading import build_model
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.tokenizer import load_tokenizer
from scripts.ranks import run_in
from tests.fit.helpers import changed

STEPS = 3
FAILS = {"on no process": (), "on all": (0, 1), "on one": (1,)}


def gradients(config: FitConfig, fails_on: tuple[int, ...] | None, result: Path) -> None:
    """Write the gradients of some steps, after a probe that fails in its backward pass."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    tokenizer = load_tokenizer(f"{config.data_path[0]}/tokenizer")
    model: Any = build_model(config.model, tokenizer)
    sharded = shard(SummedTokenLoss(model), Sharding(layers=(), reshard=True), accelerator)
    layer = model.decoder.block[0].layer[-1]

    def fail(module: Any, grad_in: Any, grad_out: Any) -> None:
        if grad_out[0].shape[0] == 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    if fails_on is not None:
        if accelerator.process_index in fails_on:
            layer.register_full_backward_hook(fail)
        probe = MemoryProbe(sharded, accelerator, token_id=1)
        shapes = [Shape(2, 5, 3), Shape(4, 9, 7), Shape(1, 3, 3)]
        assert probe.too_big(shapes) == (shapes[1] if fails_on else None)
        assert all(weight.grad is None for weight in sharded.parameters())
    found = []
    for step in range(STEPS):
        ids = torch.arange(2, 14).view(2, 6) + step + accelerator.process_index
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :4]}
        accelerator.backward(sharded(**batch))
        found.append({n: full_tensor(p.grad) for n, p in sharded.named_parameters()})
        sharded.zero_grad()
    if accelerator.is_main_process:
        torch.save(found, result)
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_after_a_probe_that_failed_gradients_are_those_without_it(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    config = changed(config, model_name_or_path=str(still))
    without = run_and_load(config, None, tmp_path)
    for name, where in FAILS.items():
        found = run_and_load(config, where, tmp_path)
        assert len(without) == len(found) == STEPS
        for one, other in zip(without, found, strict=True):
            assert len(one) > 40
            assert [n for n in one if not torch.equal(one[n], other[n])] == [], name


def run_and_load(config: FitConfig, fails_on: Any, folder: Path) -> Any:
    run_in(2, gradients, config, fails_on, folder / "result.pt", folder=folder / "said")
    return torch.load(folder / "result.pt")
