"""A model in shares trains as a whole one does, and is saved as one; here on gloo."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from pipeline.config import FitConfig
from pipeline.config.views import Sharding
from pipeline.errors import ConfigError
from pipeline.fit.data.micro_batches import Shape
from pipeline.fit.distributed import fsdp as sharding
from pipeline.fit.distributed.accelerate_config import hidden_sharding, with_launcher_settings
from pipeline.fit.distributed.fsdp import shard, sharding_of
from pipeline.fit.estimate.memory import Memory, training_memory
from pipeline.fit.model.loading import build_model, quiet_transformers
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from pipeline.fit.training.step import StepResult
from pipeline.fit.training.trainer import Trainer, TrainerCallback
from pipeline.tokenizer import load_tokenizer
from scripts.ranks import RankError, run_in
from tests.fit.distributed.test_processes import torchrun
from tests.fit.helpers import (
    assert_same_weights,
    changed,
    fit_with,
    log_of,
    weights_of,
    with_config,
)

FSDP = "--fsdp=full_shard auto_wrap"
ADAPTER = "adapter_model.safetensors"
LAUNCHED = ("--save-steps=3", "--eval-steps=3")


@pytest.fixture
def run(config: FitConfig, still: Path) -> FitConfig:
    """Six steps of five rows in micro-batches of at most two, without dropout, clipped."""
    return changed(
        config,
        model_name_or_path=str(still),
        train_batch_size=5,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
    )


@pytest.fixture
def tied_run(run: FitConfig, tied: Path, tmp_path: Path) -> FitConfig:
    """The same with one embedding matrix."""
    folder = with_config(tied, tmp_path / "tied-still", dropout_rate=0.0)
    return changed(run, model_name_or_path=str(folder))


def assert_same_run(one: Path, other: Path, *, rel: float = 1e-4, weights: float = 1e-4) -> None:
    """Compare losses, rates, gradient norms, evaluations and final weights of two runs."""
    first, second = log_of(one), log_of(other)
    assert [entry["step"] for entry in first] == [entry["step"] for entry in second]
    for wanted, found in zip(first, second, strict=True):
        assert found == pytest.approx(wanted, rel=rel)
    tensors = weights_of(other)
    assert tensors.keys() == weights_of(one).keys()
    for name, tensor in weights_of(one).items():
        assert (tensors[name] - tensor).abs().max() < weights, name


def assert_loads(folder: Path, *, tied: bool) -> None:
    with quiet_transformers():
        model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert (model.lm_head.weight is model.shared.weight) == tied
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def goes_on(config: FitConfig, finished: Path, name: str) -> FitConfig:
    """Return a run that was stopped after its first checkpoint."""
    folder = shutil.copytree(finished, finished.with_name(name))
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "trainer_state.json").unlink()
    return changed(config, output_dir=str(folder))


def test_two_shares_are_the_run_of_one_whole_and_it_goes_on_from_them(
    tied_run: FitConfig, tmp_path: Path
) -> None:
    one = fit(tied_run)
    two = tmp_path / "two"
    sharded = changed(tied_run, output_dir=str(two), fsdp="full_shard auto_wrap")
    assert "Warning" not in run_in(2, fit, sharded, folder=tmp_path / "said")
    assert_same_run(one, two)
    assert_loads(two, tied=True)
    assert_loads(two / "checkpoint-3", tied=True)
    assert_same_run(one, fit(goes_on(tied_run, two, "went-on")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, ()),
        ({}, ("--gradient-checkpointing=True",)),
        (
            {"optim": "adafactor", "max_grad_norm": 0.2},
            ("--optim=adafactor", "--max-grad-norm=0.2"),
        ),
        ({"optim": "muon", "max_grad_norm": 0.2}, ("--optim=muon", "--max-grad-norm=0.2")),
        ({"weight_decay": 0.1, "optim": "adamw_torch_fused"}, ("--fsdp=shard_grad_op",)),
    ],
    ids=["untied", "checkpointing", "adafactor", "muon", "shard_grad_op"],
)
def test_shares_are_the_run_of_a_whole_and_go_both_ways(
    run: FitConfig, tmp_path: Path, changes: dict[str, Any], flags: tuple[str, ...]
) -> None:
    run = changed(run, **changes)
    if "weight_decay" in changes:
        flags += ("--weight-decay=0.1", "--optim=adamw_torch_fused")
    flags = (*LAUNCHED, FSDP, *flags)
    one, two = fit(run), tmp_path / "two"
    torchrun(changed(run, output_dir=str(two)), 2, *flags)
    assert_same_run(one, two)
    assert_loads(two, tied=False)
    assert_same_run(one, fit(goes_on(run, two, "shares-to-whole")))
    other = goes_on(run, one, "whole-to-shares")
    assert "resuming from checkpoint-3" in torchrun(other, 2, *flags)
    assert_same_run(one, Path(other.output_dir))


@pytest.mark.slow
def test_in_bfloat16_shares_differ_no_more_than_whole_copies_do(
    run: FitConfig, tmp_path: Path
) -> None:
    one = fit(changed(run, bf16=True))
    for name, flags in (("whole", ()), ("shares", (FSDP,))):
        out = tmp_path / name
        torchrun(changed(run, output_dir=str(out)), 2, *LAUNCHED, "--bf16=True", *flags)
        assert_same_run(one, out, rel=5e-3, weights=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_a_sharded_adapter_is_that_of_one_process(
    run: FitConfig, tmp_path: Path, bf16: bool
) -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    run = changed(run, lora_r=4, lora_dropout=0.0, bf16=bf16)
    two = changed(run, output_dir=str(tmp_path / "two"), fsdp="full_shard")
    one = fit(run)
    run_in(2, fit, two, folder=tmp_path / "said")
    rel, weights = (5e-3, 3e-3) if bf16 else (1e-4, 1e-4)
    first, second = (load_file(out / ADAPTER) for out in (one, tmp_path / "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == torch.float32
        assert (second[name] - tensor).abs().max() < weights, name
    for wanted, found in zip(log_of(one), log_of(tmp_path / "two"), strict=True):
        assert found == pytest.approx(wanted, rel=rel)


def gathered_types(config: FitConfig, result: Path) -> None:
    """Write the types that a sharded model computes with, and those of its gradients."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model: Any = build_model(config.model, load_tokenizer(f"{config.data_path[0]}/tokenizer"))
    sharded = shard(SummedTokenLoss(model), Sharding(layers=(), reshard=True), accelerator)
    seen: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        if getattr(module, "weight", None) is not None:

            def look(module: Any, *_: Any, name: str = name) -> None:
                seen[name] = module.weight.dtype

            module.register_forward_pre_hook(look)
    ids = torch.arange(2, 14).view(2, 6)
    loss = sharded(ids, torch.ones_like(ids), ids)
    accelerator.backward(loss)
    if accelerator.is_main_process:
        grads = {weight.grad.dtype for weight in sharded.parameters()}
        torch.save((seen, grads, loss.dtype), result)
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


def test_in_bfloat16_layers_are_gathered_in_it_and_gradients_reduced_in_float32(
    run: FitConfig, tmp_path: Path
) -> None:
    result = tmp_path / "types.pt"
    run_in(2, gathered_types, run, result, folder=tmp_path / "said")
    seen, gradients, loss = torch.load(result)
    assert gradients == {torch.float32}
    assert loss == torch.float32
    for name, kind in seen.items():
        in_layer = ".block." in name and not name.endswith("relative_attention_bias")
        assert kind == (torch.bfloat16 if in_layer else torch.float32), name
    assert {"lm_head", "encoder.block.0.layer.0.SelfAttention.q"} <= seen.keys()


@pytest.mark.slow
def test_a_run_in_shares_goes_on_to_the_bit(run: FitConfig, tiny: Path, tmp_path: Path) -> None:
    run = changed(run, model_name_or_path=str(tiny), output_dir=str(tmp_path / "whole"))
    torchrun(run, 2, *LAUNCHED, FSDP)
    parts = goes_on(run, tmp_path / "whole", "parts")
    torchrun(parts, 2, *LAUNCHED, FSDP)
    assert log_of(Path(run.output_dir)) == log_of(Path(parts.output_dir))
    assert_same_weights(Path(run.output_dir), Path(parts.output_dir))


@pytest.mark.slow
def test_the_biggest_micro_batch_first_leaves_nothing_behind_in_shares(
    run: FitConfig, tmp_path: Path
) -> None:
    one, two = fit(run), tmp_path / "two"
    config = changed(run, output_dir=str(two), fsdp="full_shard")
    said = run_in(2, fit_with_probe, config, folder=tmp_path / "said")
    assert said.count("the largest micro-batch fits") == 1
    assert_same_run(one, two)


def fit_with_probe(config: FitConfig) -> None:
    fit_with(config, probe_memory=True)


@pytest.mark.slow
def test_weights_in_shares_are_several_files_too(tied_run: FitConfig, tmp_path: Path) -> None:
    one, two = fit(tied_run), tmp_path / "two"
    config = changed(tied_run, output_dir=str(two), fsdp="full_shard")
    run_in(2, fit_into_small_files, config, folder=tmp_path / "said")
    assert len(list(two.glob("model-*.safetensors"))) > 1
    assert_loads(two, tied=True)
    with quiet_transformers():
        state = AutoModelForSeq2SeqLM.from_pretrained(two).state_dict()
    for name, tensor in weights_of(one).items():
        assert (state[name] - tensor).abs().max() < 1e-4, name


def fit_into_small_files(config: FitConfig) -> None:
    fit_with(config, max_shard_bytes=40_000)


@pytest.mark.slow
def test_a_weight_that_is_no_number_in_one_share_ends_all(run: FitConfig, tmp_path: Path) -> None:
    config = changed(run, fsdp="full_shard")
    with pytest.raises(RankError) as caught:
        run_in(2, fit_spoiled, config, folder=tmp_path / "said")
    said = str(caught.value)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    line = f"error: training diverged; where: step 3; got: {name} with values that are not finite"
    assert said.count(line) == 2, said


class Spoil(TrainerCallback):
    """Puts what is no number into the second process's shard of a weight, after the third step."""

    def on_train_begin(self, trainer: Trainer) -> None:
        self.model: Any = trainer.model

    def on_step_end(self, step: int, result: StepResult) -> None:
        weight = self.model.model.encoder.block[0].layer[0].SelfAttention.q.weight
        if step == 3 and torch.distributed.get_rank() == 1:
            weight.detach().to_local().fill_(float("nan"))


def fit_spoiled(config: FitConfig) -> None:
    fit(config, callback=Spoil())


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_TRANSFORMER_CLS_TO_WRAP": "T5Block",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        },
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    ],
    ids=["fsdp", "deepspeed"],
)
def test_what_accelerates_config_asks_for_is_done(
    run: FitConfig, tmp_path: Path, asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = fit(run), tmp_path / "two"
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    said = torchrun(changed(run, output_dir=str(two)), 2, *LAUNCHED)
    assert said.count("accelerate's config sets") == 1
    assert_same_run(one, two)


@pytest.mark.parametrize(
    ("changes", "where", "got"),
    [
        ({"fsdp": "full_shard offload"}, "--fsdp", "offload"),
        ({"fsdp": "fully"}, "--fsdp", "fully"),
        ({"torch_compile": True}, "--torch-compile", "True"),
        ({"optim": "adamw_8bit"}, "--optim", "adamw_8bit"),
        ({"lora_r": 4, "quantize": "4bit"}, "--quantize", "4bit"),
    ],
)
def test_what_is_not_done_in_shares(
    config: FitConfig, changes: dict[str, Any], where: str, got: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        sharding_of(changed(config, **{"fsdp": "full_shard"} | changes), 2)
    assert (caught.value.where, caught.value.got) == (where, got)


def test_layers_that_the_model_does_not_have(still: Path) -> None:
    with quiet_transformers():
        model = AutoModelForSeq2SeqLM.from_pretrained(still)
    assert len(sharding.layers_of(model, ())) == len(sharding.layers_of(model, ("T5Block",))) == 4
    with pytest.raises(ConfigError, match="no such layers") as caught:
        sharding.layers_of(model, ("BertLayer",))
    assert "T5Block" in caught.value.do


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"ACCELERATE_USE_FSDP": "false"}, {}),
        ({"ACCELERATE_USE_FSDP": "true"}, {"fsdp": "full_shard"}),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "2"}, {"fsdp": "shard_grad_op"}),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_RESHARD_AFTER_FORWARD": "false",
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                "FSDP_TRANSFORMER_CLS_TO_WRAP": "T5Block",
                "FSDP_ACTIVATION_CHECKPOINTING": "true",
            },
            {
                "fsdp": "shard_grad_op",
                "fsdp_transformer_layer_cls_to_wrap": "T5Block",
                "gradient_checkpointing": True,
            },
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {"fsdp": "shard_grad_op"}),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"},
            {"fsdp": "full_shard"},
        ),
    ],
)
def test_the_launchers_words(
    config: FitConfig,
    given: dict[str, str],
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text('{"zero_optimization": {"stage": 3}}', "utf-8")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert with_launcher_settings(config) == changed(config, **changes)
    assert len(capsys.readouterr().err.splitlines()) == bool(changes)
    own = changed(config, fsdp="full_shard")
    assert with_launcher_settings(own) == own
    import os

    with hidden_sharding():
        assert not any(name.startswith("ACCELERATE_USE_") for name in os.environ)
    assert given.items() <= os.environ.items()


def test_a_strategy_that_accelerate_does_not_know(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_SHARDING_STRATEGY", "FULLY")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        with_launcher_settings(config)
    assert "FULLY" in caught.value.got


def test_the_launchers_bf16_is_done(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert with_launcher_settings(config) == config
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    own = changed(config, bf16=True)
    assert with_launcher_settings(own) == own
    assert capsys.readouterr().err == ""
    assert with_launcher_settings(config) == own
    [line] = capsys.readouterr().err.splitlines()
    assert "mixed_precision bf16: using --bf16 True" in line


@pytest.mark.parametrize(("asked", "words"), [("fp16", "overflows"), ("fp8", "unsupported")])
def test_another_precision_of_the_launcher_is_refused(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, asked: str, words: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(ConfigError, match=words) as caught:
        fit(config)
    assert caught.value.got == asked
    assert not Path(config.output_dir).exists()


def test_offload_that_the_launcher_asks_for_is_refused(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ConfigError, match="not supported") as caught:
        with_launcher_settings(config)
    assert caught.value.got == "offload"


@pytest.mark.parametrize("content", ["{", "[]", '{"zero_optimization": {"stage": "auto"}}'])
def test_a_config_of_deepspeed_that_cannot_be_read(
    config: FitConfig, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ds.json").write_text(content, "utf-8")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
    with pytest.raises(ConfigError, match="DeepSpeed's config"):
        with_launcher_settings(config)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two GPUs")
def test_on_two_gpus(tied_run: FitConfig, tmp_path: Path) -> None:
    one, two = fit(tied_run), tmp_path / "two"
    torchrun(changed(tied_run, output_dir=str(two)), 2, *LAUNCHED, FSDP)
    assert_same_run(one, two, rel=1e-3, weights=2e-3)
    assert_loads(two, tied=True)
    assert_same_run(one, fit(goes_on(tied_run, two, "went-on")), rel=1e-3, weights=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_shares_of_one_process_on_a_gpu(
    tied_run: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process has all of it, but gathers, reduces, saves and loads as many do."""
    one = fit(tied_run)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29577")
    alone = Sharding(layers=(), reshard=True)

    def fit_shares(config: FitConfig) -> Path:
        return fit_with(config, lambda ctx: dataclasses.replace(ctx, sharding=alone))

    shares = fit_shares(changed(tied_run, output_dir=str(tmp_path / "shares")))
    assert_same_run(one, shares, rel=1e-3, weights=2e-3)
    resumed = fit_shares(goes_on(tied_run, shares, "went-on"))
    assert_same_run(one, resumed, rel=1e-3, weights=2e-3)


def test_the_dry_run_counts_shares(
    tied_run: FitConfig,
) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(tied_run.model_name_or_path)
    sizes = [sum(p.nbytes for p in block.parameters()) for block in sharding.layers_of(model, ())]
    everything = sum(parameter.nbytes for parameter in model.parameters())
    root = everything - sum(sizes)

    def memory_of(processes: int, fsdp: str = "", **changes: Any) -> Memory:
        run = changed(tied_run, fsdp=fsdp, **changes)
        asked = sharding_of(run, processes)
        return training_memory(
            model, run.model, run.optim, Shape(2, 9, 7), sharding=asked, processes=processes
        )

    memory = memory_of(4, "full_shard")
    assert memory.parameters == everything // 4 + root + sum(sorted(sizes)[-2:])
    assert memory.gradients == memory.parameters
    assert memory.optimizer == 2 * everything // 4
    kept = memory_of(4, "shard_grad_op")
    assert kept.parameters == everything // 4 + everything
    assert kept.gradients == memory.gradients
    half = memory_of(4, "shard_grad_op", bf16=True)
    biases = sum(p.nbytes for n, p in model.named_parameters() if "relative_attention_bias" in n)
    assert half.parameters == everything // 4 + root + (sum(sizes) - biases) // 2 + biases
    assert half.gradients == memory.gradients
    whole = memory_of(4)
    assert (whole.parameters, whole.gradients) == (everything, everything)
    assert memory_of(1, "full_shard") == whole
    model.requires_grad_(False)
    assert memory_of(4, "full_shard").gradients == 0


def test_a_whole_tensor_is_its_own_share() -> None:
    tensor = torch.ones(2)
    assert sharding.full_tensor(tensor) is sharding.local_shard(tensor) is tensor
    assert not sharding.is_sharded(tensor)
