"""What the tests of ``fit`` make their folders and settings with."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import BartConfig

from pipeline.config import FitConfig
from pipeline.fit.checkpoint.output import holding_output
from pipeline.fit.checkpoint.pretrained import MAX_SHARD_BYTES
from pipeline.fit.context import RunContext
from pipeline.fit.data.collate import IGNORED, Batch
from pipeline.fit.data.prepared import open_data
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.launch import join_processes
from pipeline.fit.stage import build_context, explained_errors
from pipeline.fit.training.build import build_checkpointer, build_trainer
from pipeline.fit.training.step import StepResult
from pipeline.fit.training.throughput import METRICS, OF_DATA_SHEET
from pipeline.fit.training.trainer import TrainerCallback
from pipeline.store.manifest import Manifest, Shard, write_manifest
from pipeline.store.shards import ShardWriter, row_schema, write_dataset_dict, write_split
from pipeline.tokenizer import TextTokenizer
from pipeline.world import World

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
NOT_A_LEAF = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""torch's compiler asks what it warns of."""

Pair = tuple[list[int], list[int]]


class Hooks(TrainerCallback):
    """Calls functions where a run tells of itself."""

    def __init__(
        self,
        *,
        step_begin: Callable[[int], object] = lambda step: None,
        step_end: Callable[[int, StepResult], object] = lambda step, result: None,
        save: Callable[[int], object] = lambda step: None,
        write: Callable[[int], object] = lambda step: None,
        prediction_step: Callable[[], object] = lambda: None,
    ) -> None:
        self._step_begin, self._step_end = step_begin, step_end
        self._save, self._write, self._prediction_step = save, write, prediction_step

    def on_step_begin(self, step: int) -> None:
        self._step_begin(step)

    def on_step_end(self, step: int, result: StepResult) -> None:
        self._step_end(step, result)

    def on_save(self, step: int) -> None:
        self._save(step)

    def on_write(self, step: int) -> None:
        self._write(step)

    def on_prediction_step(self) -> None:
        self._prediction_step()


def fit_with(
    config: FitConfig,
    change: Callable[[RunContext], RunContext] = lambda ctx: ctx,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **options: Any,
) -> Path:
    """Run ``fit`` from the context on: changed, on any device, with options of the trainer."""
    data = open_data(config)
    with join_processes(World.from_environment(), bf16=config.bf16) as accelerator:
        ctx = change(build_context(config, accelerator, data))
        held = holding_output(ctx.output, is_main=accelerator.is_main_process)
        with held, explained_errors(config, ctx.plan):
            checkpointer = build_checkpointer(ctx, max_shard_bytes=max_shard_bytes)
            checkpoint, _ = checkpointer.load_latest()
            trainer = build_trainer(ctx, checkpoint, checkpointer, HostGroup.join(), **options)
            assert trainer.train() is None
            trainer.save_pretrained()
            accelerator.wait_for_everyone()
    return ctx.output


def changed(config: FitConfig, **changes: Any) -> FitConfig:
    return dataclasses.replace(config, **changes)


def with_config(model: Path, folder: Path, **changes: Any) -> Path:
    """Copy a model's folder with other values in its config; None takes a value out."""
    shutil.copytree(model, folder)
    values = json.loads((folder / "config.json").read_text("utf-8")) | changes
    values = {name: value for name, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values), "utf-8")
    return folder


def make_rows(tokenizer: TextTokenizer, count: int, seed: int) -> list[Pair]:
    """Make rows of very different lengths out of the texts."""
    ids = [i for text in tokenizer.encode_batch(TEXTS) for i in text]
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        sides = []
        for length in (random.integers(3, MAX_LENGTH), random.integers(1, 40)):
            at = int(random.integers(0, len(ids) - MAX_LENGTH))
            sides.append([*ids[at : at + int(length) - 1], tokenizer.eos_id])
        rows.append((sides[0], sides[1]))
    return rows


def write_prepared(
    folder: Path,
    tokenizer: TextTokenizer,
    rows: Mapping[str, Sequence[Pair]],
    *,
    rows_per_batch: int = 7,
    batches_per_shard: int = 1000,
    vocab_size: int | None = None,
    **settings: Any,
) -> Path:
    """Write a prepared folder of these rows, as the first stage does, with some settings of it."""
    folder.mkdir(parents=True)
    schema = row_schema(vocab_size or tokenizer.vocab_size)
    shards = []
    for split, pairs in rows.items():
        batches = _batches(pairs, rows_per_batch, schema)
        written = [
            _write_shard(folder, split, i, batches[start : start + batches_per_shard], schema)
            for i, start in enumerate(range(0, max(1, len(batches)), batches_per_shard))
        ]
        write_split(folder, split, written)
        shards += written
    write_dataset_dict(folder, list(rows))
    (folder / "rejected.jsonl").touch()
    tokenizer.save(folder / "tokenizer", model_max_length=MAX_LENGTH)
    manifest = Manifest(
        fingerprint=folder.name,
        config={"model_max_length": MAX_LENGTH, **settings},
        sources=[],
        counts={"pairs": sum(map(len, rows.values()))},
        tokens={"vocab_size": tokenizer.vocab_size},
        shards=shards,
    )
    write_manifest(folder, manifest)
    return folder


def _batches(pairs: Sequence[Pair], size: int, schema: pa.Schema) -> list[pa.RecordBatch]:
    batches = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        columns = [
            pa.array([encoder for encoder, _ in part], schema.field("input_ids").type),
            pa.array([decoder for _, decoder in part], schema.field("labels").type),
            pa.array([f"c{start + i}" for i in range(len(part))], pa.string()),
            pa.array([1] * len(part), pa.int32()),
        ]
        batches.append(pa.record_batch(columns, schema=schema))
    return batches


def _write_shard(
    folder: Path, split: str, number: int, batches: Sequence[pa.RecordBatch], schema: pa.Schema
) -> Shard:
    (folder / split).mkdir(exist_ok=True)
    path = f"{split}/shard-{number:05d}.arrow"
    writer = ShardWriter(folder / path, schema)
    for batch in batches:
        writer.write(batch)
    return Shard(path=path, split=split, **dataclasses.asdict(writer.close()))


def tiny_bart(vocab_size: int) -> BartConfig:
    """Return the config of a model that is no T5."""
    return BartConfig(
        vocab_size=vocab_size,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=16,
    )


def state_of(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``trainer_state.json``."""
    value: dict[str, Any] = json.loads((folder / "trainer_state.json").read_text("utf-8"))
    return value


def log_of(folder: Path) -> list[dict[str, float]]:
    """Return a run's log without the times and the memory in it."""
    measured = {*METRICS, OF_DATA_SHEET, "train_runtime", "eval_runtime"}
    measured |= {"train_samples_per_second", "train_steps_per_second"}
    return [
        {name: value for name, value in entry.items() if name not in measured}
        for entry in state_of(folder)["log_history"]
    ]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def pad_to_multiple(batch: Batch, pad_id: int, multiple: int) -> Batch:
    """Return the batch with both lengths rounded up; what is added is masked and has no loss."""
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    pad = torch.nn.functional.pad
    return {
        name: pad(tensor, (0, -tensor.shape[1] % multiple), value=fill[name])
        for name, tensor in batch.items()
    }
