"""Gradients are in memory once: views of DistributedDataParallel's buckets, all the time."""

import json
from pathlib import Path

import torch

from pipeline.config import FitConfig
from pipeline.fit.stage import fit
from pipeline.fit.training.trainer import Trainer, TrainerCallback
from scripts.ranks import run_in
from tests.fit.helpers import changed


class WatchGradients(TrainerCallback):
    """Notes where each gradient is, before each micro-batch's forward pass and after each step."""

    def __init__(self) -> None:
        self.places: list[list[int | None]] = []
        self.storages = 0
        self.bytes = 0

    def on_train_begin(self, trainer: Trainer) -> None:
        self.weights = [p for p in trainer.model.parameters() if p.requires_grad]
        assert isinstance(trainer.model, torch.nn.parallel.DistributedDataParallel)
        trainer.model.register_forward_pre_hook(lambda *_: self.note())

    def note(self) -> None:
        there = [p.grad for p in self.weights]
        self.places.append([None if grad is None else grad.data_ptr() for grad in there])
        storages = [grad.untyped_storage() for grad in there if grad is not None]
        by_place = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.storages, self.bytes = len(by_place), sum(by_place.values())


def watch(config: FitConfig, result: str) -> None:
    callback = WatchGradients()
    fit(config, callback=callback)
    found = {
        "places": callback.places,
        "storages": callback.storages,
        "bytes": callback.bytes,
        "trained": sum(weight.nbytes for weight in callback.weights),
    }
    Path(result).write_text(json.dumps(found), "utf-8")


def test_gradients_stay_in_the_buckets(config: FitConfig, tmp_path: Path) -> None:
    """Three steps of several micro-batches each."""
    config = changed(config, max_steps=3, train_batch_size=8, per_device_train_batch_size=1)
    run_in(2, watch, config, str(tmp_path / "found.json"), folder=tmp_path / "said")
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    places = found["places"]
    assert len(places) > 3
    assert None not in places[0]
    assert all(each == places[0] for each in places)
    assert found["storages"] < len(places[0]) / 4  # some buckets, and not a tensor for each weight
    assert found["bytes"] == found["trained"]
