"""One process reads the weights; all have them, to the bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import FitConfig
from pipeline.errors import ModelError
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.load_once import on_meta, receive_weights
from pipeline.fit.model.embedding import is_tied
from pipeline.fit.model.loading import build_model
from pipeline.fit.stage import fit
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from scripts.ranks import run_in
from tests.fit.helpers import changed, tiny_bart

CPU = torch.device("cpu")


def bare(folder: Path, copy: Path) -> Path:
    """Copy a model's folder without its weights."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(folder, copy, ignore=ignore)


def state_of_each(configs: list[FitConfig], checkpoints: list[Path | None], result: Path) -> None:
    """Write what each process's model holds, each with a config of its own."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    tokenizer = load_tokenizer(f"{configs[rank].data_path[0]}/tokenizer")
    model = build_model(
        configs[rank].model, tokenizer, checkpoint=checkpoints[rank], hosts=HostGroup.join()
    )
    assert rank == 0 or any(weight.is_meta for weight in model.parameters())
    receive_weights(model, CPU)
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    kept = {name: (t.detach(), t.requires_grad) for name, t in named.items()}
    torch.save(kept, result.with_suffix(f".{rank}"))
    assert len({id(t) for t in named.values()}) == len({t.data_ptr() for t in named.values()})
    dist.barrier()
    dist.destroy_process_group()


def compare(
    config: FitConfig,
    other: FitConfig,
    folder: Path,
    checkpoints: tuple[Path | None, Path | None] = (None, None),
) -> None:
    """Compare what two processes hold with what one does that loads by itself."""
    result = folder / "state.pt"
    run_in(2, state_of_each, [config, other], list(checkpoints), result, folder=folder / "said")
    tokenizer = load_tokenizer(f"{config.data_path[0]}/tokenizer")
    one = build_model(config.model, tokenizer, checkpoint=checkpoints[0])
    named = dict(one.named_parameters(remove_duplicate=False)) | dict(one.named_buffers())
    for rank in (0, 1):
        found = torch.load(result.with_suffix(f".{rank}"))
        assert found.keys() == named.keys()
        for name, (value, trained) in found.items():
            assert value.dtype == named[name].dtype
            assert torch.equal(value, named[name]), name
            assert trained == named[name].requires_grad, name


@pytest.mark.parametrize("kind", ["untied", pytest.param("tied", marks=pytest.mark.slow)])
def test_only_the_first_process_reads_the_weights(
    config: FitConfig, tiny: Path, tied: Path, tmp_path: Path, kind: str
) -> None:
    folder = tied if kind == "tied" else tiny
    config = changed(config, model_name_or_path=str(folder))
    other = changed(config, model_name_or_path=str(bare(folder, tmp_path / "bare")))
    compare(config, other, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_an_adapters_base_and_its_checkpoint_are_read_once(
    config: FitConfig, tiny: Path, tmp_path: Path, bf16: bool
) -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    config = changed(config, lora_r=4, bf16=bf16)
    other = changed(config, model_name_or_path=str(bare(tiny, tmp_path / "bare")))
    compare(config, other, tmp_path)
    out = fit(changed(config, max_steps=1, save_strategy="steps", save_steps=1))
    checkpoint = out / "checkpoint-1"
    compare(config, other, tmp_path, (checkpoint, bare(checkpoint, tmp_path / "checkpoint")))


@pytest.mark.slow
def test_a_checkpoint_is_read_once(config: FitConfig, tmp_path: Path) -> None:
    out = fit(changed(config, max_steps=1, save_strategy="steps", save_steps=1))
    checkpoint = out / "checkpoint-1"
    compare(config, config, tmp_path, (checkpoint, bare(checkpoint, tmp_path / "checkpoint")))


@pytest.mark.slow
def test_fresh_weights_are_the_same_in_all_processes(config: FitConfig, tmp_path: Path) -> None:
    config = changed(config, from_scratch=True)
    compare(config, changed(config, seed=7), tmp_path)


def fails_in_each(config: FitConfig, result: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    tokenizer = load_tokenizer(f"{config.data_path[0]}/tokenizer")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_model(config.model, tokenizer, hosts=HostGroup.join())
    result.with_suffix(f".{dist.get_rank()}").touch()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_what_the_first_process_cannot_load_is_told_to_all(
    config: FitConfig, tiny: Path, tmp_path: Path
) -> None:
    config = changed(config, model_name_or_path=str(bare(tiny, tmp_path / "bare")))
    run_in(2, fails_in_each, config, tmp_path / "done", folder=tmp_path / "said")
    assert (tmp_path / "done.0").exists()
    assert (tmp_path / "done.1").exists()


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_a_copy_without_values_is_tied_as_the_model_is(
    config: FitConfig, tiny: Path, tied: Path, tokenizer: TextTokenizer, kind: str
) -> None:
    folder = tied if kind == "tied" else tiny
    model = build_model(changed(config, model_name_or_path=str(folder)).model, tokenizer)
    empty = on_meta(model)
    assert is_tied(empty) == is_tied(model) == (kind == "tied")
    assert all(weight.is_meta for weight in empty.parameters())
    assert not any(weight.is_meta for weight in model.parameters())
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    assert {name: weight.shape for name, weight in empty.named_parameters()} == shapes


def test_buffers_outside_the_state_dict_are_of_the_copy_too() -> None:
    from transformers import BartForConditionalGeneration

    model: Any = BartForConditionalGeneration(tiny_bart(20))
    model.register_buffer("positions", torch.arange(3), persistent=False)
    empty = on_meta(model)
    assert empty.positions.is_meta
    assert empty.final_logits_bias.is_meta
    assert not model.positions.is_meta
