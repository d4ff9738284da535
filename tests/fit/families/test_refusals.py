"""What cannot be trained is refused in one line, before anything is made."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import ModelError
from pipeline.fit.stage import fit
from pipeline.prepare.stage import prepare
from tests.conftest import SAMPLE
from tests.fit.families.conftest import Family
from tests.fit.helpers import with_config

BYTES = {"model_type": "t5", "is_encoder_decoder": True, "vocab_size": 384}


def write_byt5(folder: Path, where: str) -> Path:
    """Write what ByT5's folder says, in one of the two places that say it."""
    folder.mkdir()
    said: dict[str, dict[str, Any]] = {"config.json": dict(BYTES), "tokenizer_config.json": {}}
    said[where]["tokenizer_class"] = "ByT5Tokenizer"
    for name, values in said.items():
        (folder / name).write_text(json.dumps(values), "utf-8")
    return folder


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_a_model_of_bytes(where: str, make: Callable[[str], Family], tmp_path: Path) -> None:
    model = write_byt5(tmp_path / "byt5", where)
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"reads bytes.*ByT5Tokenizer"):
        prepare(
            PrepareConfig(data_path=str(SAMPLE), model_name_or_path=str(model), output_dir=str(out))
        )
    assert not out.exists()
    run = make("t5").run(out, model_name_or_path=str(model))
    for config in (run, dataclasses.replace(run, dry_run=True)):
        with pytest.raises(ModelError, match="reads bytes"):
            fit(config)
    assert not out.exists()


def test_a_decoder(make: Callable[[str], Family], tmp_path: Path) -> None:
    family, out = make("t5gemma"), tmp_path / "out"
    model = with_config(
        family.model, tmp_path / "llama", model_type="llama", is_encoder_decoder=None
    )
    with pytest.raises(ModelError, match=r"not an encoder-decoder.*model_type llama"):
        prepare(
            PrepareConfig(data_path=str(SAMPLE), model_name_or_path=str(model), output_dir=str(out))
        )
    with pytest.raises(ModelError, match="not an encoder-decoder"):
        fit(family.run(out, model_name_or_path=str(model)))
    assert not out.exists()


@pytest.mark.parametrize(("rows", "model"), [("t5", "t5gemma"), ("bart", "t5"), ("mt5", "bart")])
def test_rows_of_another_tokenizer(
    rows: str, model: str, make: Callable[[str], Family], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = make(rows).run(out, model_name_or_path=str(make(model).model))
    for config in (run, dataclasses.replace(run, dry_run=True)):
        with pytest.raises(ModelError, match=r"another model.*id \d+ in the data"):
            fit(config)
    assert not out.exists()


def test_a_model_without_a_tokenizer_and_with_few_rows(
    make: Callable[[str], Family], tmp_path: Path
) -> None:
    """Such as ByT5 where its tokenizer was not copied."""
    family = make("flan-t5")
    bare = with_config(family.model, tmp_path / "bare", vocab_size=99)
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        (bare / name).unlink()
    with pytest.raises(ModelError, match="no tokenizer, and 99 embedding rows"):
        fit(family.run(tmp_path / "out", model_name_or_path=str(bare)))
    assert not (tmp_path / "out").exists()
