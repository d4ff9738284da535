"""A tiny T5 and small prepared folders, made through the store without the first stage."""

from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from scripts.tiny_t5 import make_tiny_t5
from tests.fit.helpers import TEXTS, make_rows, with_config, write_prepared


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Flan-T5 of two layers, with dropout; 256 rows or more, some of them spare."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return make_tiny_t5(folder, TEXTS, vocab_size=200, d_model=32)


@pytest.fixture(scope="session")
def still(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout."""
    return with_config(tiny, tmp_path_factory.mktemp("still") / "still", dropout_rate=0.0)


@pytest.fixture(scope="session")
def tied(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one embedding matrix, as T5 1.0 has it."""
    from safetensors.torch import load_file, save_file

    folder = with_config(tiny, tmp_path_factory.mktemp("tied") / "tied", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> TextTokenizer:
    """The lossless tokenizer of the tiny T5."""
    return load_tokenizer(str(tiny))


@pytest.fixture(scope="session")
def prepared(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty rows to train on, five to evaluate on."""
    rows = {"train": make_rows(tokenizer, 20, 0), "eval": make_rows(tokenizer, 5, 1)}
    return write_prepared(tmp_path_factory.mktemp("data") / "both", tokenizer, rows)


@pytest.fixture(scope="session")
def train_only(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty rows to train on, none to evaluate on."""
    rows = {"train": make_rows(tokenizer, 20, 0)}
    return write_prepared(tmp_path_factory.mktemp("data") / "train-only", tokenizer, rows)


@pytest.fixture
def config(tiny: Path, prepared: Path, tmp_path: Path) -> FitConfig:
    """A run of six steps of four rows that logs each step and saves nothing on the way."""
    return FitConfig(
        data_path=str(prepared),
        model_name_or_path=str(tiny),
        output_dir=str(tmp_path / "out"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        eval_strategy="no",
    )
