"""Prepared folders mixed by shares: rows of an epoch, batches, refusals, and a run that resumes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.mixture import Mixture, Source, open_mixture
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.stage import fit
from pipeline.fit.training.trainer import TrainerCallback
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import (
    assert_same_weights,
    changed,
    log_of,
    make_rows,
    state_of,
    write_prepared,
)


@pytest.fixture
def other(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    """Ten rows of another folder."""
    return write_prepared(tmp_path / "other", tokenizer, {"train": make_rows(tokenizer, 10, 7)})


@pytest.fixture
def mixture(prepared: Path, other: Path) -> Mixture:
    found = open_mixture([Source(str(prepared)), Source(str(other), 0.3)])
    assert isinstance(found, Mixture)
    return found


def test_an_epoch_takes_all_of_one_and_a_share_of_the_other(mixture: Mixture) -> None:
    assert mixture.rows_per_epoch == 23
    epochs = [mixture.epoch_rows(0, epoch) for epoch in range(40)]
    for rows in epochs:
        assert rows[:20].tolist() == list(range(20))
        assert len(set(rows[20:])) == 3
        assert rows[20:].min() >= 20
    assert {int(row) for rows in epochs for row in rows[20:]} == set(range(20, 30))
    assert np.array_equal(mixture.epoch_rows(0, 1), epochs[1])
    assert not np.array_equal(mixture.epoch_rows(1, 1), epochs[1])
    steps = BatchSampler(
        *mixture.lengths, global_batch_size=4, seed=0, epoch_rows=mixture.epoch_rows
    )
    assert steps.steps_per_epoch == 6
    for epoch in (0, 1):
        taken = np.concatenate([steps.rows_of(epoch * 6 + step) for step in range(6)])
        assert sorted(taken) == epochs[epoch].tolist()


def test_batches_are_those_of_the_folders(mixture: Mixture, prepared: Path, other: Path) -> None:
    first, second = SupervisedDataset(prepared), SupervisedDataset(other)
    batch = mixture.batch(np.array([25, 3, 20]), pad_id=0, multiple=4)
    for place, row in enumerate((second[5], first[3], second[0])):
        size = len(row["input_ids"])
        assert torch.equal(batch["input_ids"][place, :size], row["input_ids"])
        assert int(batch["attention_mask"][place].sum()) == size
        size = len(row["labels"])
        assert torch.equal(batch["labels"][place, :size], row["labels"])
        assert bool((batch["labels"][place, size:] == -100).all())
    assert all(tensor.shape[1] % 4 == 0 for tensor in batch.values())
    whole = mixture.batch(np.array([4, 1]), pad_id=0)
    for name, tensor in first.batch(np.array([4, 1]), pad_id=0).items():
        assert torch.equal(whole[name], tensor)
    assert mixture.conversation_ids([25, 3]) == ["c5", "c3"]


@pytest.mark.parametrize("share", ["0", "1.5", "-1", "nan"])
def test_a_share_that_cannot_be(config: FitConfig, share: str) -> None:
    with pytest.raises(ConfigError, match="share"):
        fit(changed(config, data_path=(f"{config.data_path[0]}={share}",)))


def test_folders_of_another_tokenizer_are_refused(config: FitConfig, other: Path) -> None:
    path = other / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("Prepend", "Append"), "utf-8")
    with pytest.raises(ConfigError, match="differ in tokenizer"):
        fit(changed(config, data_path=(config.data_path[0], str(other))))
    with pytest.raises(ConfigError, match="--num-data"):
        fit(changed(config, data_path=(config.data_path[0], str(other)), num_data=3))


class Stopped(TrainerCallback):
    def on_step_end(self, step: int, result: Any) -> None:
        if step == 8:
            raise MemoryError("the machine is gone")


def test_a_run_on_a_mixture_resumes_exactly(
    config: FitConfig, still: Path, other: Path, tmp_path: Path
) -> None:
    paths = (config.data_path[0], f"{other}=0.3")
    config = changed(
        config, data_path=paths, model_name_or_path=str(still), max_steps=-1, num_train_epochs=2
    )
    whole = fit(changed(config, output_dir=str(tmp_path / "whole")))
    told = json.loads((whole / "run.json").read_text("utf-8"))["prepared"]
    assert told["fingerprint"] == "both=1 + other=0.3"
    assert (told["rows"]["train"], told["counts"]) == (30, {})
    assert state_of(whole)["global_step"] == 12
    config = changed(config, save_strategy="steps", save_steps=5)
    with pytest.raises(MemoryError):
        fit(config, callback=Stopped())
    assert log_of(fit(config)) == log_of(whole)
    assert_same_weights(Path(config.output_dir), whole)
