"""Tokenizers of families as their folders on the hub are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.tokenizer import load_tokenizer
from tests.fit.families.conftest import Family
from tests.fit.helpers import TEXTS


def test_a_bart_names_its_tokens_in_its_class_alone(
    make: Callable[[str], Family], tmp_path: Path
) -> None:
    """As facebook/bart-base: its tokenizer_config.json says nothing of them."""
    family = make("bart")
    shutil.copytree(family.model, tmp_path / "bart")
    said = json.dumps({"model_max_length": 1024})
    (tmp_path / "bart" / "tokenizer_config.json").write_text(said, "utf-8")
    tokenizer = load_tokenizer(str(tmp_path / "bart"))
    assert (tokenizer.eos_id, tokenizer.prefix_ids) == (2, (0,))
    assert tokenizer.encode_batch(TEXTS) == family.tokenizer.encode_batch(TEXTS)
    assert tokenizer.label_prefix_ids == family.tokenizer.label_prefix_ids == (0,)
