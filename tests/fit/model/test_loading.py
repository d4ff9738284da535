"""A model is loaded with a row for each id of the data, or refused in one line."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM
from transformers import BartForConditionalGeneration as Bart

from pipeline.config import FitConfig
from pipeline.console.progress import Wait
from pipeline.errors import DuetError, ModelError, TokenizerError
from pipeline.fit.model.embedding import embedding_weights, is_tied, num_rows
from pipeline.fit.model.loading import build_model, quiet_transformers
from pipeline.fit.model.token_ids import model_token_ids
from pipeline.hub.download import counted_weights, find_model_file
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from pipeline.tokenizer.vocabulary import NEW_PIECES
from scripts.tiny_t5 import make_tiny_t5
from tests.fit.helpers import TEXTS, changed, tiny_bart, weights_of, with_config

FASTCHAT = ("[PAD]", "<", "{", "\n", "}", "`", " ", "\\", "^", "\t")
"""What FastChat-T5 was extended with, in its order; it has no ``~``."""


def ids_of(tokenizer: TextTokenizer) -> dict[str, int]:
    vocabulary = tokenizer.backend.get_vocab()
    return {piece: vocabulary[piece] for piece in NEW_PIECES}


def cut_rows(folder: Path, rows: int) -> None:
    """Leave so many rows of both matrices."""
    weights = load_file(folder / "model.safetensors")
    for name in ("shared.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][:rows].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def load(config: FitConfig, model: Path, tokenizer: TextTokenizer, **changes: Any) -> Any:
    return build_model(changed(config, model_name_or_path=str(model), **changes).model, tokenizer)


def test_spare_rows_take_the_new_pieces(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer
) -> None:
    before, model = weights_of(tiny), load(config, tiny, tokenizer)
    assert not is_tied(model)
    ids = ids_of(tokenizer)
    first = min(ids.values())
    for name, weight in (("shared", model.shared.weight), ("lm_head", model.lm_head.weight)):
        old = before[f"{name}.weight"]
        assert weight.shape == old.shape
        assert weight.dtype == torch.float32
        for i in ids.values():
            torch.testing.assert_close(weight[i], old[:first].mean(dim=0))
        assert torch.equal(weight[:first], old[:first])
        assert torch.equal(weight[first + 9 :], old[first + 9 :])


def test_too_few_rows_grow_to_a_multiple_of_128(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "small")
    cut_rows(folder, min(ids_of(tokenizer).values()) + 2)
    before, model = weights_of(folder), load(config, folder, tokenizer)
    assert num_rows(model) % 128 == 0
    assert num_rows(model) >= tokenizer.vocab_size
    assert model.config.vocab_size == num_rows(model)
    assert not is_tied(model)
    assert_new_rows(model, before, min(ids_of(tokenizer).values()))


@pytest.mark.parametrize("has_tokenizer", [True, False])
@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_a_model_without_rows_for_sentinels_gets_them_all(
    config: FitConfig,
    tiny: Path,
    tied: Path,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    kind: str,
    has_tokenizer: bool,
) -> None:
    folder = shutil.copytree(tied if kind == "tied" else tiny, tmp_path / "small")
    if not has_tokenizer:
        (folder / "spiece.model").unlink()
    rows = min(ids_of(tokenizer).values()) - 100
    cut_rows(folder, rows)
    before, model = weights_of(folder), load(config, folder, tokenizer)
    assert num_rows(model) % 128 == 0
    assert is_tied(model) == (kind == "tied")
    assert_new_rows(model, before, rows)


def assert_new_rows(model: Any, before: dict[str, torch.Tensor], trained: int) -> None:
    """Check that all rows from ``trained`` on are the mean of those before."""
    for name in ("shared", "lm_head"):
        if f"{name}.weight" in before:
            old, weight = before[f"{name}.weight"], getattr(model, name).weight
            assert torch.equal(weight[:trained], old[:trained])
            new = weight[trained:]
            torch.testing.assert_close(new, old[:trained].mean(dim=0).expand_as(new))


@pytest.mark.parametrize("rows", ["all", "only its own"])
@pytest.mark.parametrize("source", ["added_tokens.json", "tokenizer_config.json"])
def test_a_model_extended_the_old_way_keeps_its_trained_rows(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path, rows: str, source: str
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "fastchat")
    new = ids_of(tokenizer)
    base = min(new.values())
    old = {token: base + i for i, token in enumerate(FASTCHAT)}
    if source == "added_tokens.json":
        (folder / source).write_text(json.dumps(old), "utf-8")
    else:
        decoder = {str(i): {"content": token} for token, i in old.items()}
        (folder / source).write_text(json.dumps({"added_tokens_decoder": decoder}), "utf-8")
    if rows == "only its own":
        cut_rows(folder, base + len(FASTCHAT))
    before, model = weights_of(folder), load(config, folder, tokenizer)
    for name, weight in (("shared", model.shared.weight), ("lm_head", model.lm_head.weight)):
        matrix = before[f"{name}.weight"]
        for piece in set(NEW_PIECES) - {"~"}:
            assert torch.equal(weight[new[piece]], matrix[old[piece]]), piece
        torch.testing.assert_close(weight[new["~"]], matrix[: base + len(FASTCHAT)].mean(dim=0))
        assert torch.equal(weight[:base], matrix[:base])


def test_a_model_that_has_this_tokenizer_is_not_touched(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "ours")
    tokenizer.save(folder, model_max_length=64)
    before, model = weights_of(folder), load(config, folder, tokenizer)
    assert torch.equal(model.shared.weight, before["shared.weight"])
    assert torch.equal(model.lm_head.weight, before["lm_head.weight"])


def test_a_model_without_a_tokenizer_says_so(
    config: FitConfig,
    tiny: Path,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "bare")
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    assert model_token_ids(str(folder)) is None
    load(config, folder, tokenizer)
    assert "the model has no tokenizer" in capsys.readouterr().err


def test_data_prepared_for_another_vocabulary_are_refused(
    config: FitConfig, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    other = make_tiny_t5(tmp_path / "other", TEXTS[2:], vocab_size=200, d_model=32)
    with pytest.raises(ModelError, match="prepared for another model"):
        load(config, other, tokenizer)


@pytest.fixture
def bart(tmp_path: Path) -> Path:
    """A BART's tokenizer, no T5's, beside a tiny BART."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted({w for text in TEXTS for w in text.split()})]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    folder = tmp_path / "bart"
    Bart(tiny_bart(len(words))).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(special | {"tokenizer_class": "PreTrainedTokenizerFast"}), "utf-8"
    )
    return folder


def test_data_of_a_tokenizer_that_is_no_t5s_fit_their_own_model_alone(
    config: FitConfig, bart: Path, tiny: Path, tokenizer: TextTokenizer
) -> None:
    own = load_tokenizer(str(bart))
    before, model = weights_of(bart), load(config, bart, own)
    assert torch.equal(model.model.shared.weight, before["model.shared.weight"])
    for folder, other in ((tiny, own), (bart, tokenizer)):
        with pytest.raises(ModelError, match="prepared for another model") as caught:
            load(config, folder, other)
        assert str(folder) in caught.value.do


def test_tokens_that_the_model_does_not_know_get_rows(
    config: FitConfig, bart: Path, tmp_path: Path
) -> None:
    spec = json.loads((bart / "tokenizer.json").read_text("utf-8"))
    rows = len(spec["model"]["vocab"])
    spec["model"]["vocab"]["new"] = rows
    more = shutil.copytree(bart, tmp_path / "more")
    (more / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    before, model = weights_of(bart), load(config, bart, load_tokenizer(str(more)))
    old, weight = before["model.shared.weight"], model.model.shared.weight
    assert num_rows(model) > rows
    torch.testing.assert_close(weight[rows:], old.mean(dim=0).expand_as(weight[rows:]))


def test_own_ids_come_from_whichever_file_there_is(tiny: Path, tokenizer: TextTokenizer) -> None:
    vocabulary = tokenizer.backend.get_vocab()
    of_spiece = model_token_ids(str(tiny))
    assert of_spiece == {token: i for token, i in vocabulary.items() if token not in NEW_PIECES}


def test_own_ids_of_a_saved_tokenizer_are_all(
    tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path, model_max_length=64)
    assert model_token_ids(str(tmp_path)) == tokenizer.backend.get_vocab()


def test_fresh_weights_are_seeded_and_untied_where_the_config_says_so(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny / "config.json", bare)
    models = [load(config, bare, tokenizer, from_scratch=True, seed=s) for s in (1, 1, 2)]
    first, same, other = (copies(model) for model in models)
    assert len(first) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert models[0].config.scale_decoder_outputs is False
    # Logits of a fresh model start near zero: the loss near the vocabulary's logarithm.
    assert float(first[1].std()) == pytest.approx(32**-0.5, rel=0.05)
    models[0].tie_weights(recompute_mapping=False)
    assert not is_tied(models[0])


def test_fresh_weights_are_tied_where_the_config_says_so(
    config: FitConfig, tied: Path, tokenizer: TextTokenizer
) -> None:
    model = load(config, tied, tokenizer, from_scratch=True)
    assert is_tied(model)
    assert model.config.scale_decoder_outputs is True


def test_fresh_weights_have_a_row_for_each_id(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = with_config(tiny, tmp_path / "small", vocab_size=10)
    model = load(config, folder, tokenizer, from_scratch=True)
    assert num_rows(model) % 128 == 0
    assert num_rows(model) >= tokenizer.vocab_size
    assert all(weight[-1].detach().abs().max() > 0 for weight in embedding_weights(model))


def copies(model: Any) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in embedding_weights(model)]


def test_weights_in_bfloat16_become_float32(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    with quiet_transformers():
        half = AutoModelForSeq2SeqLM.from_pretrained(tiny).to(torch.bfloat16)
        half.save_pretrained(tmp_path / "half")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path / "half")
    model = load(config, tmp_path / "half", tokenizer)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_generation_config_is_complete(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = with_config(tiny, tmp_path / "copy", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    generation = load(config, folder, tokenizer).generation_config
    assert generation.decoder_start_token_id == 0
    assert generation.pad_token_id == 0
    assert generation.eos_token_id == 1


def test_a_generation_config_that_could_not_be_saved_is_refused_before_a_step(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = with_config(tiny, tmp_path / "copy")
    path = folder / "generation_config.json"
    values = json.loads(path.read_text("utf-8")) | {"temperature": 0.7}
    path.write_text(json.dumps(values), "utf-8")
    older = Version(transformers.__version__) < Version("5.23")  # some refuse it at once
    with contextlib.suppress(ModelError) if older else contextlib.nullcontext():
        load(config, folder, tokenizer)  # saved as it is
    del values["decoder_start_token_id"]
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ModelError, match="generation config") as caught:
        load(config, folder, tokenizer)
    assert caught.value.got.startswith("`temperature`: `do_sample` is not set")


def test_weights_are_counted_while_they_are_loaded(tiny: Path) -> None:
    with counted_weights("loading"), quiet_transformers():
        AutoModelForSeq2SeqLM.from_pretrained(tiny)
        assert Wait._shown is not None and Wait._shown.total is not None
        assert Wait._shown.done == Wait._shown.total > 20
    assert Wait._shown is None


def break_nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", "utf-8")


def take_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]", "utf-8")


def make_decoder_only(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), "utf-8")


def make_unknown(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such"}), "utf-8")


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def take_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_a_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"d_ff": 7}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def take_start(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text("utf-8"))
        del values["decoder_start_token_id"]
        (folder / name).write_text(json.dumps(values), "utf-8")


def empty_spiece(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(b"")


def break_spiece(folder: Path) -> None:
    file = folder / "spiece.model"
    file.write_bytes(b"\xff" * file.stat().st_size)


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{", "utf-8")


def empty_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", "utf-8")


def break_added_tokens(folder: Path) -> None:
    (folder / "added_tokens.json").write_text("[1, 2]", "utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_nothing, "cannot be found"),
        (break_config, "cannot be loaded"),
        (take_config, "no config.json"),
        (list_config, "a list, not an object"),
        (make_decoder_only, "cannot be loaded"),
        (make_unknown, "cannot be loaded"),
        (cut_weights, "cannot be loaded"),
        (take_weights, "cannot be loaded"),
        (drop_a_weight, "1 missing in all"),
        (change_a_shape, "of shape [64, 32], not [7, 32]"),
        (take_start, "decoder_start_token_id"),
        (break_added_tokens, "cannot be read"),
        (break_tokenizer, "cannot be read"),
        (empty_tokenizer, "no vocabulary"),
        (empty_spiece, "an empty file"),
        (break_spiece, "not a SentencePiece model"),
    ],
)
def test_what_is_no_model_is_named_in_one_line(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path, damage: Any, words: str
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    damage(folder)
    with pytest.raises(DuetError) as caught:
        load(config, folder, tokenizer)
    assert isinstance(caught.value, (ModelError, TokenizerError))
    assert words in str(caught.value)
    assert "model" in caught.value.where
    assert "\n" not in str(caught.value)


def test_a_cached_model_needs_no_hub(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not beside its config was not there when the hub could be asked."""
    asked: list[bool] = []
    download = huggingface_hub.hf_hub_download

    def counting(*args: Any, local_files_only: bool, **options: Any) -> str:
        asked.append(not local_files_only)
        return download(*args, local_files_only=local_files_only, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", counting)
    snapshot = tmp_path / "models--org--cached" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny, snapshot)
    (tmp_path / "models--org--cached" / "refs").mkdir()
    (tmp_path / "models--org--cached" / "refs" / "main").write_text("0" * 40)
    found = find_model_file("org/cached", "config.json", str(tmp_path))
    assert found == snapshot / "config.json"
    assert find_model_file("org/cached", "added_tokens.json", str(tmp_path)) is None
    assert find_model_file("org/cached", "tokenizer.json", str(tmp_path)) is None
    assert asked == [True, True, False], "once it is not reached, it is not asked again"
    with pytest.raises(ModelError, match="cannot be found"):
        find_model_file("org/other", "config.json", str(tmp_path))


def test_a_name_that_is_neither_folder_nor_hub_name(
    config: FitConfig, tokenizer: TextTokenizer
) -> None:
    with pytest.raises(ModelError, match="cannot be found"):
        load(config, Path("/no/such/model"), tokenizer)
