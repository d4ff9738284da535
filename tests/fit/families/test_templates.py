"""Rows of a model's own chat template: through prepare, fit and chat, and against another's."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer, T5Tokenizer

from pipeline.cli import run as run_command
from pipeline.config import PrepareConfig
from pipeline.conversation import Conversation, Role, Turn
from pipeline.errors import ModelError
from pipeline.fit.stage import fit
from pipeline.generation.source import SourceEncoder
from pipeline.prepare.stage import prepare
from pipeline.store.manifest import read_manifest
from pipeline.tokenizer import load_tokenizer
from tests.chat_models import FREE, STRICT
from tests.fit.families.conftest import Family

TURNS = [
    {"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi <eos>"},
    {"from": "human", "value": "you"}, {"from": "gpt", "value": "The sea, the wind."},
]  # fmt: skip


def with_template(family: Family, folder: Path, template: str) -> Path:
    """Copy a model of Gemma's kind, with a template that writes tokens of its tokenizer."""
    shutil.copytree(family.model, folder)
    path = folder / "tokenizer_config.json"
    own = template.replace("<start_of_turn>", "<boi>").replace("<end_of_turn>", "<eoi>")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": own}), "utf-8")
    return folder


def prepared(model: Path, folder: Path, **options: Any) -> Path:
    data = folder / "chats.json"
    data.write_text(json.dumps([{"id": str(i), "conversations": TURNS} for i in range(4)]), "utf-8")
    config = PrepareConfig(
        data_path=str(data), model_name_or_path=str(model), output_dir=str(folder / "processed"),
        dedup=False, num_workers=1, model_max_length=128, **options,
    )  # fmt: skip
    return Path(prepare(config))


def test_what_made_the_rows_is_what_the_trained_model_reads(
    make: Callable[[str], Family], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = make("t5gemma")
    model = with_template(family, tmp_path / "model", STRICT)
    data = prepared(model, tmp_path)
    assert "the model's own chat template, which does not take all" in capsys.readouterr().err
    row = datasets.load_from_disk(str(data))["train"][0]
    assert run_command(["inspect", str(data)]) == 0
    assert "<boi>user\nBe kind." in capsys.readouterr().out
    run = family.run(
        tmp_path / "out", data_path=str(data), model_name_or_path=str(model), max_steps=1
    )
    out = fit(run)
    stock: Any = AutoTokenizer.from_pretrained(out)
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    messages = [{"role": names[turn["from"]], "content": turn["value"]} for turn in TURNS[:3]]
    ids = stock.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == row["input_ids"]
    assert "<boi>user\nBe kind.\n\nHi < eos>\n\nyou<eoi>" in stock.decode(ids)
    assert row["labels"][-1] == family.tokenizer.eos_id  # no <eoi>: generation stops at <eos>
    roles = {"human": Role.HUMAN, "gpt": Role.ASSISTANT, "system": Role.SYSTEM}
    asked = Conversation("x", [Turn(roles[turn["from"]], turn["value"]) for turn in TURNS[:3]])
    assert SourceEncoder(load_tokenizer(str(out)), 128).ids(asked) == ids  # chat, generate, serve
    # A trained model's template is the same one: rows of either train the other.
    assert prepared(out, tmp_path) == data
    fit(dataclasses.replace(run, model_name_or_path=str(out), dry_run=True))


def test_rows_of_another_template_are_refused(
    make: Callable[[str], Family], tmp_path: Path
) -> None:
    family, out = make("t5gemma"), tmp_path / "out"
    strict = with_template(family, tmp_path / "strict", STRICT)
    free = with_template(family, tmp_path / "free", FREE)
    of_strict, tagged = prepared(strict, tmp_path), prepared(family.model, tmp_path)
    tagged_data = r"the tagged text .* in the data, .\{\{ bos_token \}\}.* with the model"
    for data, model, got in [
        (of_strict, free, r"\{\{ bos_token .* in the data, .\{%- for m in .* with the model"),
        (tagged, strict, tagged_data),
    ]:
        run = family.run(out, data_path=str(data), model_name_or_path=str(model))
        for config in (run, dataclasses.replace(run, dry_run=True)):
            with pytest.raises(ModelError, match=f"another chat template.*{got}"):
                fit(config)
    assert not out.exists()


def test_the_tagged_text_can_be_asked_for(make: Callable[[str], Family], tmp_path: Path) -> None:
    family = make("t5gemma")
    model = with_template(family, tmp_path / "model", STRICT)
    data = prepared(model, tmp_path, chat_template="duet")
    assert read_manifest(data).config["chat_template"] == "duet"
    row = datasets.load_from_disk(str(data))["train"][0]
    assert (
        row["input_ids"]
        == datasets.load_from_disk(str(prepared(family.model, tmp_path)))["train"][0]["input_ids"]
    )
    fit(
        family.run(
            tmp_path / "out", data_path=str(data), model_name_or_path=str(model), dry_run=True
        )
    )
    stock: Any = AutoTokenizer.from_pretrained(data / "tokenizer")
    messages = [{"role": "user", "content": "Hi"}]
    text = stock.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.endswith("### Human: Hi\n### Assistant:")


def test_a_t5_is_trained_on_the_chat_tokens_that_it_was_given(
    make: Callable[[str], Family], tmp_path: Path
) -> None:
    """They keep their ids and rows; the lossless tokenizer has other pieces there."""
    family, model = make("flan-t5"), tmp_path / "model"
    shutil.copytree(family.model, model)
    stock: Any = T5Tokenizer.from_pretrained(model)
    tokens = ["<|im_start|>", "<|im_end|>"]
    stock.add_special_tokens({"additional_special_tokens": tokens})
    stock.chat_template = FREE.replace("<start_of_turn>", tokens[0]).replace(
        "<end_of_turn>", tokens[1]
    )
    stock.save_pretrained(model)
    data = prepared(model, tmp_path)
    run = family.run(tmp_path / "out", data_path=str(data), model_name_or_path=str(model))
    out = fit(dataclasses.replace(run, max_steps=1, learning_rate=1e-12))
    loaded: Any = AutoTokenizer.from_pretrained(out)
    row = datasets.load_from_disk(str(data))["train"][0]
    for token in tokens:
        ids = {t.convert_tokens_to_ids(token) for t in (stock, loaded)}
        assert len(ids) == 1 and ids < set(row["input_ids"])
    assert prepared(out, tmp_path) == data
