"""Each family of encoder-decoders trains as stock transformers computes it, and loads there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from pipeline.cli import run as run_command
from pipeline.config import PrepareConfig
from pipeline.conversation import Conversation, Role, Turn
from pipeline.fit.data.collate import IGNORED, DataCollatorForSupervisedDataset
from pipeline.fit.estimate.memory_probe import SMALLEST, full_batch
from pipeline.fit.model import embedding
from pipeline.fit.model import loss as losses
from pipeline.fit.model.embedding import (
    MULTIPLE,
    embedding_weights,
    smart_tokenizer_and_embedding_resize,
)
from pipeline.fit.model.loading import build_model, model_structure, quiet_transformers
from pipeline.fit.model.lora import merge_adapter
from pipeline.fit.model.loss import SummedTokenLoss, is_chunked
from pipeline.fit.stage import fit
from pipeline.generation.source import SourceEncoder
from pipeline.prepare.stage import prepare
from tests.fit.distributed.test_processes import torchrun
from tests.fit.families.conftest import Family
from tests.fit.families.models import FAMILIES
from tests.fit.helpers import MAX_LENGTH, assert_same_weights, log_of

STARTS = {"bart": 2, "bart-untied": 2, "t5gemma": 2, "t5gemma2": 2}
"""Ids that decoders start with, where it is not T5's 0."""
APART = {"t5gemma", "bart-untied"}
"""Families whose encoder looks ids up in a matrix of its own."""
FROZEN = {"t5gemma2": ("vision_tower", "multi_modal"), "bart-untied": ("model.shared",)}
"""What no text passes through."""


def stock(folder: Path) -> Any:
    """Load a folder as others do; nothing may be missing, unexpected or of another shape."""
    with quiet_transformers():
        model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.float()


def decoder_matrix(model: Any) -> torch.Tensor:
    matrix: torch.Tensor = model.get_decoder().get_input_embeddings().weight
    return matrix


def is_tied(model: Any) -> bool:
    """T5Gemma's head is one with the decoder's matrix, and the encoder has one of its own."""
    return model.get_output_embeddings().weight is decoder_matrix(model)


def batch_of(family: Family, model: Any, count: int = 4) -> dict[str, torch.Tensor]:
    rows = [{"input_ids": source, "labels": target} for source, target in family.rows[:count]]
    return DataCollatorForSupervisedDataset(model.config)(rows)


def sharpen(model: Any) -> None:
    """Make the weights larger: with those of a fresh model logits are near zero, caps idle."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)


@pytest.mark.parametrize(
    "chunk_bytes",
    [pytest.param(None, marks=pytest.mark.slow), 1 << 13],
    ids=["whole", "chunks"],
)
def test_loss_and_gradients_are_those_of_transformers(
    family: Family, chunk_bytes: int | None, tmp_path: Path
) -> None:
    built = build_model(family.run(tmp_path).model, family.tokenizer)
    plain = stock(family.model)
    plain.load_state_dict(built.state_dict())  # new pieces have rows of their own
    for model in (built, plain):
        model.train()
        if family.name == "t5gemma":
            sharpen(model)
    batch = batch_of(family, built)
    summed = SummedTokenLoss(built, chunk_bytes=chunk_bytes)(**batch)
    found = summed / batch["labels"].ne(IGNORED).sum()
    wanted = plain(**batch).loss
    found.backward()
    wanted.backward()
    assert is_chunked(built)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    ours = dict(built.named_parameters())
    for name, weight in plain.named_parameters():
        expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
        got = torch.zeros_like(weight) if ours[name].grad is None else ours[name].grad
        assert (got - expected).abs().max() <= 1e-5, name


def test_the_decoder_starts_as_transformers_shifts_labels(family: Family, tmp_path: Path) -> None:
    config = build_model(family.run(tmp_path).model, family.tokenizer).config
    labels = torch.tensor([[7, 8, IGNORED]])
    plain = stock(family.model)
    wanted = plain.prepare_decoder_input_ids_from_labels(labels)
    start = config.decoder_start_token_id
    assert start == STARTS.get(family.name, 0)
    assert torch.equal(losses.shift_right(labels, start, config.pad_token_id), wanted)


def test_every_weight_that_is_trained_has_a_gradient_in_any_batch(
    family: Family, tmp_path: Path
) -> None:
    """DistributedDataParallel waits for each, FSDP reduces the same ones in all processes."""
    model = build_model(family.run(tmp_path).model, family.tokenizer).train()
    SummedTokenLoss(model)(**full_batch(SMALLEST, 7, torch.device("cpu"))).backward()
    trained = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
    assert [name for name, weight in trained if weight.grad is None] == []
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    unused = FROZEN.get(family.name, ())
    assert all(any(part in name for part in unused) for name in frozen)
    assert bool(frozen) == bool(unused)


def test_a_trained_folder_loads_as_it_was_trained(
    family: Family, trained: Callable[[Family], Path]
) -> None:
    out = trained(family)
    model = stock(out)
    assert is_tied(model) == embedding.is_tied(model) == family.tied
    encoder_matrix = model.get_encoder().get_input_embeddings().weight
    assert (encoder_matrix is decoder_matrix(model)) == (family.name not in APART)
    names = load_file(out / "model.safetensors").keys()
    assert sum("lm_head" in name for name in names) == (not family.tied)
    assert log_of(out)[0]["loss"] > log_of(out)[1]["loss"]
    ends = model.generation_config.eos_token_id
    assert family.tokenizer.eos_id in (ends if isinstance(ends, list) else [ends])
    assert model.generation_config.decoder_start_token_id == STARTS.get(family.name, 0)


def test_what_was_trained_is_what_transformers_loads(family: Family, tmp_path: Path) -> None:
    """Its weights as they are, and T5's scale of the logits, which the config alone tells."""
    still = {"learning_rate": 1e-12, "max_steps": 1, "per_device_train_batch_size": 12}
    out = fit(family.run(tmp_path / "out", **still))
    model = stock(out).eval()
    wanted = model(**batch_of(family, model, 12)).loss.item()
    assert log_of(out)[0]["loss"] == pytest.approx(wanted, rel=1e-5)


def test_an_adapter_trains_the_layers_of_its_family(family: Family, tmp_path: Path) -> None:
    out = fit(family.run(tmp_path / "out", lora_r=2, lora_alpha=4))
    saved = load_file(out / "adapter_model.safetensors")
    layers = {name.split(".lora_")[0] for name in saved if ".lora_" in name}
    assert not any("vision" in name or "lm_head" in name for name in layers)
    model = stock(family.model)
    stacks = {id(m) for m in (*model.get_encoder().modules(), *model.get_decoder().modules())}
    linear = {
        f"base_model.model.{name}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and id(module) in stacks
        and not {"vision_tower", "multi_modal_projector", "classifier"} & set(name.split("."))
    }
    assert layers == linear  # all but a router
    merged = merge_adapter(model, out)
    learnt = [bool(weight.any()) for name, weight in saved.items() if "lora_B" in name]
    assert sum(learnt) > len(learnt) // 2  # of a few rows no expert but those they come to
    assert is_tied(merged) == family.tied


def test_a_grown_vocabulary_loads_as_it_was(family: Family, tmp_path: Path) -> None:
    model = stock(family.model)
    matrices = len(embedding_weights(model))
    tokenizer = AutoTokenizer.from_pretrained(family.model)
    before = [weight.detach().clone() for weight in embedding_weights(model)]
    known = min(len(tokenizer), len(before[0]))
    words = [f"<word {i}>" for i in range(500)]
    smart_tokenizer_and_embedding_resize({}, words, tokenizer, model)
    model.save_pretrained(tmp_path)
    loaded = stock(tmp_path)
    assert is_tied(loaded) == family.tied
    assert len(embedding_weights(loaded)) == matrices
    new = tokenizer.convert_tokens_to_ids(words[-1])
    for old, weight in zip(before, embedding_weights(loaded), strict=True):
        assert weight.shape[0] % MULTIPLE == 0
        assert new < weight.shape[0] == loaded.get_output_embeddings().out_features
        assert torch.equal(weight[:known], old[:known])
        assert torch.allclose(weight[new], old[:known].mean(dim=0), atol=1e-6)
    said = stock(family.model).config.tie_word_embeddings
    assert loaded.config.tie_word_embeddings == said
    ids = torch.tensor([[new, 7, 8]])
    assert loaded(input_ids=ids, labels=ids).loss.isfinite()


RESUMED = {"t5gemma", "t5gemma2", "switch", "longt5"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in RESUMED)) for n in FAMILIES]
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    name: str, make: Callable[[str], Family], tmp_path: Path
) -> None:
    family = make(name)
    whole = fit(family.run(tmp_path / "whole", save_strategy="steps", save_steps=1, max_steps=2))
    shutil.copytree(whole / "checkpoint-1", tmp_path / "parts" / "checkpoint-1")
    stock(whole / "checkpoint-1")
    parts = fit(family.run(tmp_path / "parts", save_strategy="steps", save_steps=1, max_steps=2))
    assert_same_weights(whole, parts)
    assert log_of(whole) == log_of(parts)


def test_its_size_is_estimated(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    config = family.run(Path("nowhere"), dry_run=True)
    fit(config)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("memory") for line in lines)
    meta = model_structure(config.model, family.tokenizer)
    real = build_model(config.model, family.tokenizer)
    assert {n: w.shape for n, w in meta.named_parameters()} == {
        n: w.shape for n, w in real.named_parameters()
    }


def test_it_answers_as_transformers_does(
    family: Family, trained: Callable[[Family], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained(family)
    capsys.readouterr()
    assert run_command(["chat", str(out), "--message", "Hi", "--max-new-tokens", "6"]) == 0
    said = capsys.readouterr().out
    source = SourceEncoder(family.tokenizer, 64).ids(Conversation("x", [Turn(Role.HUMAN, "Hi")]))
    ids = stock(out).eval().generate(torch.tensor([source]), max_new_tokens=6, do_sample=False)
    text = family.tokenizer.decode(ids[0, 1:].tolist())
    assert said.rstrip("\n") == text.rstrip("\n")


@pytest.mark.slow
def test_sample_answers_are_those_of_transformers(family: Family, tmp_path: Path) -> None:
    own = {"eval_strategy": None, "eval_data_path": (f"own={family.data}",), "eval_samples": 2}
    out = fit(family.run(tmp_path / "out", **own))
    model, answers = stock(out).eval(), []
    for row in (0, 11):
        source = torch.tensor([family.rows[row][0]])
        ids = model.generate(source, max_new_tokens=MAX_LENGTH, do_sample=False)
        answers.append(family.tokenizer.decode(ids[0, 1:].tolist()))
    samples = map(json.loads, (out / "samples.jsonl").read_text("utf-8").splitlines())
    assert [sample["answer"] for sample in samples] == answers


TWO = ["longt5", "switch", "bart", "t5gemma", "t5gemma2", "umt5", "mt5", "ul2"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--fsdp=full_shard auto_wrap",)], ids=["whole", "fsdp"])
@pytest.mark.parametrize("name", TWO)
def test_two_processes_give_the_run_of_one(
    name: str, flags: tuple[str, ...], make: Callable[[str], Family], tmp_path: Path
) -> None:
    family = make(name)
    changes = {"train_batch_size": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    one = fit(family.run(tmp_path / "one", **changes))
    two = family.run(tmp_path / "two", **changes)
    torchrun(two, 2, "--save-strategy=no", "--eval-strategy=no", *flags)
    for first, second in zip(log_of(one), log_of(tmp_path / "two"), strict=True):
        assert second == pytest.approx(first, rel=1e-4)
    assert is_tied(stock(tmp_path / "two")) == family.tied


@pytest.mark.slow
def test_what_is_exported_loads(family: Family, tmp_path: Path) -> None:
    out = fit(family.run(tmp_path / "out", lora_r=2, lora_alpha=4))
    args = ["export", str(out), "--merge", "--output-dir", str(tmp_path / "whole")]
    assert run_command(args) == 0
    assert is_tied(stock(tmp_path / "whole")) == family.tied


def test_from_conversations_to_an_answer(family: Family, tmp_path: Path) -> None:
    """Rows as ``prepare`` makes them: the tokenizer's own start, one end, no start in labels."""
    data = tmp_path / "chats.json"
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "The sea, the wind."}]
    data.write_text(json.dumps([{"id": str(i), "conversations": turns} for i in range(3)]), "utf-8")
    config = PrepareConfig(
        data_path=str(data), model_name_or_path=str(family.model), dedup=False, num_workers=1,
        output_dir=str(tmp_path / "processed"), model_max_length=128,
    )  # fmt: skip
    prepared = Path(prepare(config))
    row = datasets.load_from_disk(str(prepared))["train"][0]
    end, start = family.tokenizer.eos_id, STARTS.get(family.name, 0)
    assert row["labels"].count(end) == row["input_ids"].count(end) == 1
    assert row["labels"][-1] == row["input_ids"][-1] == end
    assert row["labels"][0] != start
    assert (
        tuple(row["input_ids"][: len(family.tokenizer.prefix_ids)]) == family.tokenizer.prefix_ids
    )
    out = fit(family.run(tmp_path / "out", data_path=str(prepared), max_steps=1))
    assert run_command(["chat", str(out), "--message", "Hi", "--max-new-tokens", "3"]) == 0
