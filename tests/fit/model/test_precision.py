"""``--bf16``: what is held in which type, and that losses do not change by it."""

import torch

from pipeline.config import FitConfig
from pipeline.fit.distributed.launch import join_processes
from pipeline.fit.model.loading import build_model
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.tokenizer import TextTokenizer
from pipeline.world import World
from tests.fit.helpers import changed


def held_bytes(config: FitConfig, tokenizer: TextTokenizer) -> int:
    """Return what a forward pass without a backward one holds before it ends."""
    model = SummedTokenLoss(build_model(config.model, tokenizer))
    ids = torch.tensor([[2, 3, 4, 1]])
    with join_processes(config, World()) as accelerator, torch.no_grad(), accelerator.autocast():
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            loss = model(ids, torch.ones_like(ids), ids)
        assert loss.dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def test_no_copy_of_the_weights_in_bfloat16_is_kept_through_a_pass(
    config: FitConfig, tokenizer: TextTokenizer
) -> None:
    config = changed(config, bf16=True)
    weights = sum(w.nbytes for w in build_model(config.model, tokenizer).parameters())
    assert held_bytes(config, tokenizer) < weights / 20
