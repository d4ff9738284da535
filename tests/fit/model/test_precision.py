"""``--bf16``: what is held in which type, and that losses do not change by it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import FitConfig
from pipeline.fit.distributed.launch import join_processes
from pipeline.fit.model.loading import build_model, load_trained
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from pipeline.tokenizer import TextTokenizer
from pipeline.world import World
from tests.fit.helpers import changed, log_of


def held_bytes(config: FitConfig, tokenizer: TextTokenizer) -> int:
    """Return what a forward pass without a backward one holds before it ends."""
    model = SummedTokenLoss(build_model(config.model, tokenizer))
    ids = torch.tensor([[2, 3, 4, 1]])
    with (
        join_processes(World(), bf16=config.bf16) as accelerator,
        torch.no_grad(),
        accelerator.autocast(),
    ):
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


@pytest.fixture
def adapted(config: FitConfig) -> FitConfig:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    return changed(config, bf16=True, lora_r=4)


def test_of_an_adapters_base_the_matrices_are_held_in_bfloat16(
    adapted: FitConfig, tokenizer: TextTokenizer
) -> None:
    model = build_model(adapted.model, tokenizer)
    full = build_model(changed(adapted, bf16=False).model, tokenizer)
    types: dict[torch.dtype, set[str]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            layer = name.removesuffix(".base_layer.weight").removesuffix(".weight")
            types.setdefault(weight.dtype, set()).add(layer.rpartition(".")[2])
    assert types[torch.bfloat16] == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
    norms = {"layer_norm", "final_layer_norm", "relative_attention_bias"}
    assert types[torch.float32] == norms | {"token_adapter"}
    assert {w.dtype for w in model.parameters() if w.requires_grad} == {torch.float32}

    def matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
        named = model.named_parameters()
        return [w for n, w in named if n.endswith(".base_layer.weight") and "token" not in n]

    held, whole = (sum(weight.nbytes for weight in matrices(m)) for m in (model, full))
    assert 0 < 2 * held == whole


def test_losses_and_gradients_are_those_on_a_base_in_float32(
    adapted: FitConfig, tokenizer: TextTokenizer
) -> None:
    """To the bit: autocast rounds the same matrices in each pass."""
    ids = torch.tensor([[2, 3, 4, 203, 204, 1], [5, 6, 7, 8, 9, 1]])
    found = []
    for bf16 in (True, False):
        model = build_model(changed(adapted, bf16=bf16, lora_dropout=0.0).model, tokenizer).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zeros else, and no gradient for A
                torch.nn.init.constant_(weight, 0.02)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = SummedTokenLoss(model)(ids, torch.ones_like(ids), ids)
        loss.backward()
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (loss, gradients), (other_loss, other) = found
    assert torch.equal(loss, other_loss)
    assert len(gradients) > 50
    for name, gradient in gradients.items():
        assert gradient is not None
        assert torch.equal(gradient, other[name]), name


def test_a_run_saves_float32_and_merges_into_float32(adapted: FitConfig, tiny: Path) -> None:
    out = fit(changed(adapted, max_steps=2, save_strategy="steps", save_steps=1))
    saved = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all("loss" in entry for entry in log_of(out)[:2])
    merged, base = load_trained(out).state_dict(), load_file(tiny / "model.safetensors")
    name = "encoder.block.0.layer.1.DenseReluDense.wo"
    a, b = (saved[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    wanted = base[f"{name}.weight"] + b @ a * (adapted.lora_alpha / adapted.lora_r)
    torch.testing.assert_close(merged[f"{name}.weight"], wanted, rtol=1e-6, atol=1e-7)
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
