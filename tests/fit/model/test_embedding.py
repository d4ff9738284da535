"""New rows start from the mean of the trained ones; tied stays tied, untied untied."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers import BartForConditionalGeneration as Bart

from pipeline.fit.model.embedding import (
    carry_over_rows,
    embedding_weights,
    grow_embedding,
    is_tied,
    num_rows,
    rows_for,
    smart_tokenizer_and_embedding_resize,
)
from pipeline.fit.model.loading import quiet_transformers
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import tiny_bart, write_prepared


@pytest.fixture(params=["untied", "tied"])
def model(request: pytest.FixtureRequest, tiny: Path, tied: Path) -> Any:
    with quiet_transformers():
        model = AutoModelForSeq2SeqLM.from_pretrained(tied if request.param == "tied" else tiny)
    assert is_tied(model) == (request.param == "tied")
    return model


@pytest.fixture
def hf_tokenizer(tokenizer: TextTokenizer, tmp_path: Path) -> Any:
    folder = write_prepared(tmp_path / "p", tokenizer, {"train": [([1], [1])]})
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def assert_mean(new: torch.Tensor, trained: torch.Tensor) -> None:
    """Check that each of the new rows is the mean of the trained ones."""
    assert len(new)
    torch.testing.assert_close(new, trained.mean(dim=0).expand_as(new))


def copies(model: Any) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in embedding_weights(model)]


def test_spare_rows_are_used_before_any_is_added(model: Any, hf_tokenizer: Any) -> None:
    before, trained = copies(model), len(hf_tokenizer)
    assert trained + 2 <= num_rows(model)
    smart_tokenizer_and_embedding_resize({"bos_token": "[BOS]"}, ["\r"], hf_tokenizer, model)
    new = [hf_tokenizer.convert_tokens_to_ids(token) for token in ("[BOS]", "\r")]
    assert sorted(new) == [trained, trained + 1]
    assert hf_tokenizer.bos_token == "[BOS]"
    for old, weight in zip(before, embedding_weights(model), strict=True):
        assert weight.shape == old.shape
        for i in new:
            torch.testing.assert_close(weight[i], old[:trained].mean(dim=0))
        kept = [i for i in range(len(old)) if i not in new]
        assert torch.equal(weight[kept], old[kept])


def test_it_grows_to_a_multiple_of_128_when_it_must(
    model: Any, hf_tokenizer: Any, tmp_path: Path
) -> None:
    before, trained, tied = copies(model), len(hf_tokenizer), is_tied(model)
    tokens = [f"[new {i}]" for i in range(num_rows(model) - trained + 1)]
    smart_tokenizer_and_embedding_resize({}, tokens, hf_tokenizer, model)
    rows = rows_for(len(before[0]) + 1)
    assert rows % 128 == 0
    assert model.config.vocab_size == num_rows(model) == rows
    assert is_tied(model) == tied
    for old, weight in zip(before, embedding_weights(model), strict=True):
        assert weight.shape[0] == rows
        assert torch.equal(weight[:trained], old[:trained])
        assert_mean(weight[trained:], old[:trained])
    ids = torch.tensor([[trained + len(tokens) - 1]])
    assert model(input_ids=ids, decoder_input_ids=ids).logits.shape[-1] == rows
    assert_loads_the_same(model, tmp_path / "saved")


def cut_rows(model: Any, rows: int) -> None:
    """Leave so many rows of each matrix."""
    for weight in embedding_weights(model):
        weight.data = weight.data[:rows].clone()


@pytest.mark.parametrize("tokens", [[], ["[new]"]])
def test_a_model_with_fewer_rows_than_the_tokenizer_grows_to_all_of_it(
    model: Any, hf_tokenizer: Any, tokens: list[str]
) -> None:
    rows = len(hf_tokenizer) - 109  # no sentinels, no new pieces
    cut_rows(model, rows)
    before = copies(model)
    smart_tokenizer_and_embedding_resize({}, tokens, hf_tokenizer, model)
    for old, weight in zip(before, embedding_weights(model), strict=True):
        assert weight.shape[0] == rows_for(len(hf_tokenizer))
        assert torch.equal(weight[:rows], old)
        assert_mean(weight[rows:], old)


def assert_loads_the_same(model: Any, folder: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(folder)
        again, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert is_tied(again) == is_tied(model)
    for one, other in zip(copies(model), copies(again), strict=True):
        assert torch.equal(one, other)


def test_every_module_that_holds_the_matrix_gets_the_new_one(model: Any) -> None:
    grow_embedding(model, num_rows(model) + 1, 9)
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.decoder.embed_tokens.weight is model.shared.weight
    assert model.shared.num_embeddings == model.lm_head.out_features == num_rows(model)


def test_it_never_shrinks(model: Any) -> None:
    before = copies(model)
    grow_embedding(model, 5, 5)
    assert [weight.shape for weight in embedding_weights(model)] == [old.shape for old in before]


def test_tokens_that_are_there_keep_id_and_row(model: Any, hf_tokenizer: Any) -> None:
    before, trained = copies(model), len(hf_tokenizer)
    smart_tokenizer_and_embedding_resize(
        {"pad_token": "<pad>"}, ["<", "\n", "a"], hf_tokenizer, model
    )
    assert len(hf_tokenizer) == trained
    for old, weight in zip(before, embedding_weights(model), strict=True):
        assert torch.equal(weight, old)


def test_a_model_with_a_bias_on_its_output_grows_that_too() -> None:
    model = Bart(tiny_bart(100))
    model.final_logits_bias = torch.arange(100.0)[None]
    old = model.model.shared.weight.detach().clone()
    grow_embedding(model, 101, 90)
    assert_mean(model.model.shared.weight[100:], old[:90])
    assert_mean(model.final_logits_bias[0, 100:], torch.arange(90.0))
    ids = torch.tensor([[100]])
    assert is_tied(model)
    assert model(input_ids=ids, decoder_input_ids=ids).logits.shape[-1] == 128


def test_rows_move_with_their_tokens_though_places_overlap(model: Any) -> None:
    """FastChat-T5's order of ids, with the new ids on top of the old."""
    before, base = copies(model), num_rows(model) - 20
    old = {"[PAD]": base, "<": base + 1, "{": base + 2, "\n": base + 3, "}": base + 4}
    new = {"\n": base, "<": base + 1, "{": base + 3, "}": base + 2, "~": base + 4}
    pieces = {token: i for token, i in old.items() if token in new}
    carry_over_rows(model, pieces, new, base + 5)
    for matrix, weight in zip(before, embedding_weights(model), strict=True):
        for token in ("\n", "<", "{", "}"):
            assert torch.equal(weight[new[token]], matrix[old[token]]), token
        torch.testing.assert_close(weight[new["~"]], matrix[: base + 5].mean(dim=0))
        assert torch.equal(weight[base + 5 :], matrix[base + 5 :])


def test_nothing_moves_where_the_ids_agree(model: Any) -> None:
    before = copies(model)
    carry_over_rows(model, {"<": 300, "~": 301}, {"<": 300, "~": 301}, 300)
    for old, weight in zip(before, embedding_weights(model), strict=True):
        assert torch.equal(weight, old)
