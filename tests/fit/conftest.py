"""A tiny T5 and small prepared folders, made through the store without the first stage."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import FitConfig
from pipeline.store.manifest import Manifest, write_manifest
from pipeline.store.shards import SplitWriter, row_schema, write_dataset_dict
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from scripts.tiny_t5 import make_tiny_t5

CODE = "def f(x):\n\tif x < 3:\n\t\treturn {x: `a`}\n    # ~ \\ ^  done\n"
TEXTS = [
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "What is the capital of France? The capital of France is Paris, a city on the Seine.",
    "Write a short poem about the sea, the wind and the stars over the harbour at night.",
    "How do I sort a list of numbers in Python? Use sorted, or the method sort of the list.",
    CODE,
]
MAX_LENGTH = 64

WritePrepared = Callable[..., Path]
MakeConfig = Callable[..., FitConfig]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Flan-T5 of two layers, with dropout."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return make_tiny_t5(folder, TEXTS, vocab_size=200, d_model=32)


@pytest.fixture(scope="session")
def still(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout."""
    return with_config(tiny, tmp_path_factory.mktemp("still") / "still", dropout_rate=0.0)


def with_config(model: Path, folder: Path, **changes: Any) -> Path:
    """Copy a model's folder with other values in its config."""
    import json

    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text("utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> TextTokenizer:
    return load_tokenizer(str(tiny))


def make_rows(tokenizer: TextTokenizer, count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Make rows of very different lengths out of the texts."""
    ids = [i for text in tokenizer.encode_batch(TEXTS) for i in text]
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        parts = []
        for length in (random.integers(3, MAX_LENGTH), random.integers(1, 40)):
            at = int(random.integers(0, len(ids) - MAX_LENGTH))
            parts.append([*ids[at : at + int(length) - 1], tokenizer.eos_id])
        rows.append((parts[0], parts[1]))
    return rows


def write_prepared(
    folder: Path,
    tokenizer: TextTokenizer,
    rows: dict[str, Sequence[tuple[list[int], list[int]]]],
    rows_per_batch: int = 7,
) -> Path:
    """Write a prepared folder of these rows."""
    folder.mkdir(parents=True)
    schema = row_schema(tokenizer.vocab_size)
    shards = []
    for split, pairs in rows.items():
        writer = SplitWriter(folder, split, schema)
        for start in range(0, len(pairs), rows_per_batch):
            part = pairs[start : start + rows_per_batch]
            columns = [
                pa.array([encoder for encoder, _ in part], schema.field("input_ids").type),
                pa.array([decoder for _, decoder in part], schema.field("labels").type),
                pa.array([f"c{start + i}" for i in range(len(part))], pa.string()),
                pa.array([1] * len(part), pa.int32()),
            ]
            writer.write(pa.record_batch(columns, schema=schema))
        shards += writer.close()
    write_dataset_dict(folder, list(rows))
    tokenizer.save(folder / "tokenizer", model_max_length=MAX_LENGTH)
    manifest = Manifest(
        fingerprint=folder.name,
        config={"model_max_length": MAX_LENGTH},
        sources=[],
        counts={"pairs": sum(map(len, rows.values()))},
        tokens={"vocab_size": tokenizer.vocab_size},
        shards=shards,
    )
    write_manifest(folder, manifest)
    return folder


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
    """A run of six steps that logs each."""
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


def changed(config: FitConfig, **changes: Any) -> FitConfig:
    return dataclasses.replace(config, **changes)
