"""A folder as fit leaves it, with answers that differ and end."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.tokenizer import TextTokenizer, load_tokenizer
from scripts.tiny_t5 import SAMPLE, read_texts


@pytest.fixture(scope="session")
def trained(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose likeliest token is a clear one, the lossless tokenizer, a window of 200."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("trained") / "out"
    shutil.copytree(tiny_t5, folder)
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 20
    # Where this one is likely the end is likelier: answers end after 3 tokens, 10, or not at all.
    weights["lm_head.weight"][1] = weights["lm_head.weight"][1001] * 1.05
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_tokenizer(str(tiny_t5)).save(folder, model_max_length=200)
    return folder


@pytest.fixture(scope="session")
def plain_model(trained: Path) -> Any:
    """The same model as stock transformers loads it."""
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(trained).eval()


@pytest.fixture(scope="session")
def tokenizer(trained: Path) -> TextTokenizer:
    return load_tokenizer(str(trained))


@pytest.fixture(scope="session")
def sources(tokenizer: TextTokenizer) -> list[list[int]]:
    """Thirty encoder rows of 10 to 110 tokens."""
    texts = [text[: 20 + 5 * i] for i, text in enumerate(read_texts(SAMPLE)[:30])]
    return [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]
