"""``--quantize 4bit``: what is quantized, that training on it is LoRA on the rounded weights."""

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import FitConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.estimate.dry_run import dry_run
from pipeline.fit.estimate.memory import quantized_weights, training_memory
from pipeline.fit.model.loading import build_model
from pipeline.fit.model.lora import QUANTIZED, quantization
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from pipeline.tokenizer import TextTokenizer
from scripts.ranks import run_in
from tests.fit.checkpoint.test_resume import fit_and_stop
from tests.fit.helpers import changed, fit_with, log_of, with_config

pytest.importorskip("peft", reason="the extra peft is not installed")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the extra quantize is not installed"
)


@pytest.fixture
def small(config: FitConfig) -> FitConfig:
    return changed(config, lora_r=4, quantize="4bit", save_strategy="steps", save_steps=3)


def test_it_wants_lora(small: FitConfig) -> None:
    with pytest.raises(ConfigError, match="--lora-r 16") as caught:
        changed(small, lora_r=0)
    assert caught.value.where == "--quantize"


def test_without_bitsandbytes_it_is_one_line(
    small: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(ConfigError, match=r"duet-t5\[quantize\]"):
        fit(small)
    assert not Path(small.output_dir).exists()


@pytest.mark.slow
@needs_bitsandbytes
def test_bitsandbytes_says_nothing_of_its_kernels() -> None:
    code = "from pipeline.fit.model.lora import require_peft; require_peft('')\n"
    code += "import peft, bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr


@needs_bitsandbytes
def test_on_a_cpu_it_is_one_line(small: FitConfig) -> None:
    with pytest.raises(ConfigError, match="need a GPU") as caught:
        fit(small)
    assert caught.value.where == "--quantize"
    assert not Path(small.output_dir).exists()


@pytest.mark.parametrize("bf16", [False, True])
def test_what_from_pretrained_is_told(bf16: bool) -> None:
    assert quantization(None, bf16=bf16) == {}
    told = quantization("4bit", bf16=bf16)
    assert told.pop("dtype") == torch.float32
    values = told.pop("quantization_config").to_dict()
    assert told == {}
    assert values["load_in_4bit"]
    assert values["bnb_4bit_quant_type"] == "nf4"
    assert values["bnb_4bit_use_double_quant"]
    assert values["bnb_4bit_compute_dtype"] == ("bfloat16" if bf16 else "float32")
    assert values["llm_int8_skip_modules"] == ["lm_head", "shared"]


def quantized_size(model: Any) -> int:
    return 4 * sum(weight.numel() for weight in quantized_weights(model))


def test_dry_run_counts_four_bits(small: FitConfig, tokenizer: TextTokenizer) -> None:
    """Layers of width 32: attention 4 x 32 x 32, with 2 + 4 of them, and gates of 2 x 64 x 32."""
    model = build_model(changed(small, quantize=None).model, tokenizer)
    assert quantized_size(model) == 4 * (6 * 4 * 32 * 32 + 4 * 2 * 64 * 32)
    quantized, whole = (
        training_memory(model, changed(small, quantize=kind).model, "adamw_torch", Shape(1, 8, 8))
        for kind in ("4bit", None)
    )
    less = round(quantized_size(model) * (1 - QUANTIZED))
    assert whole.parameters - quantized.parameters == pytest.approx(less, abs=1)
    assert whole.optimizer == quantized.optimizer
    assert any(line.startswith("parameters") for line in dry_run(small))


@needs_bitsandbytes
def test_all_is_quantized_but_what_must_be_whole(
    small: FitConfig, tokenizer: TextTokenizer
) -> None:
    model = build_model(small.model, tokenizer)
    kinds: dict[torch.dtype, set[str]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            layer = name.removesuffix(".base_layer.weight").removesuffix(".weight")
            kinds.setdefault(parameter.dtype, set()).add(layer.rpartition(".")[2])
    assert kinds[torch.uint8] == {"q", "k", "v", "o", "wi_0", "wi_1"}
    whole = {"wo", "layer_norm", "final_layer_norm", "relative_attention_bias", "token_adapter"}
    assert kinds[torch.float32] == whole
    assert torch.bfloat16 not in kinds
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    wanted = quantized_size(build_model(changed(small, quantize=None).model, tokenizer)) * QUANTIZED
    taken = sum(state_bytes(module.weight) for module in layers(model))
    assert taken == pytest.approx(wanted, rel=0.02)


def layers(model: Any) -> list[Any]:
    import bitsandbytes as bnb

    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]


def state_bytes(weight: Any) -> int:
    state = weight.quant_state
    return int(weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes)


def rounded(small: FitConfig, tokenizer: TextTokenizer, folder: Path) -> Path:
    """Copy the model of some settings with the weights that four bits leave of it."""
    import bitsandbytes as bnb

    weights = load_file(Path(small.model_name_or_path) / "model.safetensors")
    for name, module in build_model(small.model, tokenizer).get_base_model().named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            name = name.removesuffix(".base_layer") + ".weight"
            again = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert not torch.equal(weights[name], again)
            weights[name] = again.float().reshape(weights[name].shape).contiguous()
    copy = with_config(Path(small.model_name_or_path), folder)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@needs_bitsandbytes
def test_it_trains_as_lora_on_the_rounded_weights(
    small: FitConfig, still: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    small = changed(small, model_name_or_path=str(still), lora_dropout=0.0, learning_rate=1e-3)
    base = rounded(small, tokenizer, tmp_path / "rounded")
    one = fit_with(small)  # on a CPU, too
    other = fit(
        changed(
            small, model_name_or_path=str(base), quantize=None, output_dir=str(tmp_path / "other")
        )
    )
    for first, second in zip(log_of(one), log_of(other), strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    first, second = (load_file(out / "adapter_model.safetensors") for out in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-4)


@needs_bitsandbytes
def test_in_bfloat16_its_layers_take_and_give_bfloat16(
    small: FitConfig, tokenizer: TextTokenizer
) -> None:
    """Such a layer gives the type that it takes, and what it gives is kept for the backward."""
    model = build_model(changed(small, bf16=True).model, tokenizer)
    seen: set[tuple[torch.dtype, torch.dtype]] = set()
    for layer in layers(model):
        layer.register_forward_hook(lambda _, args, made: seen.add((args[0].dtype, made.dtype)))
    ids = torch.arange(2, 10).view(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        SummedTokenLoss(model)(ids, torch.ones_like(ids), ids).backward()
    assert seen == {(torch.bfloat16, torch.bfloat16)}


@needs_bitsandbytes
def test_the_versions_name_bitsandbytes(small: FitConfig) -> None:
    out = fit_with(changed(small, max_steps=1, save_strategy="no"))
    versions = json.loads((out / "run.json").read_text("utf-8"))["versions"]
    assert versions["bitsandbytes"] == version("bitsandbytes")
    assert f"| bitsandbytes | {version('bitsandbytes')} |" in (out / "README.md").read_text("utf-8")


@needs_bitsandbytes
@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(small: FitConfig, tmp_path: Path) -> None:
    whole = fit_with(small)
    again = changed(small, output_dir=str(tmp_path / "again"))
    fit_and_stop(again, run=fit_with)
    with pytest.raises(CheckpointError, match="other settings") as caught:
        fit(changed(again, quantize=None))
    assert caught.value.where == "--quantize"
    resumed = fit_with(again)
    one, other = (load_file(out / "adapter_model.safetensors") for out in (whole, resumed))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert log_of(whole) == log_of(resumed)


@pytest.mark.slow
@needs_bitsandbytes
def test_two_processes_train_the_adapter_of_one(
    small: FitConfig, still: Path, tmp_path: Path
) -> None:
    small = changed(
        small,
        model_name_or_path=str(still),
        lora_dropout=0.0,
        train_batch_size=4,
        learning_rate=1e-3,
    )
    two = changed(small, output_dir=str(tmp_path / "two"))
    for count, config in ((1, small), (2, two)):
        run_in(count, fit_with, config, folder=tmp_path / "said")
    first, second = (
        load_file(Path(config.output_dir) / "adapter_model.safetensors") for config in (small, two)
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-4)


@pytest.mark.gpu
@needs_bitsandbytes
def test_on_a_gpu_in_bfloat16(small: FitConfig, still: Path, tmp_path: Path) -> None:
    """The losses are near those on whole weights, and the layers lie on the GPU in four bits."""
    small = changed(small, model_name_or_path=str(still), bf16=True, learning_rate=1e-3)
    whole = changed(small, quantize=None, output_dir=str(tmp_path / "whole"))
    logs = [[e["loss"] for e in log_of(fit(c)) if "loss" in e] for c in (small, whole)]
    assert logs[0] == pytest.approx(logs[1], rel=0.05)
    assert torch.cuda.max_memory_allocated() > 0
