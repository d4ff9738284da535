"""One side of ``fit.py``, in a process of its own: trains, and writes down what it measured.

    python benchmarks/fit_side.py SETTINGS.json RESULT.json

A hook on torch's optimizers is the clock of all sides alike: it counts from the end of the first
step, which is the warm-up, to the end of the last one. While a snapshot of the weights is written
the clock stands still.
"""

import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from pipeline.config import FitConfig
from pipeline.fit.checkpoint.pretrained import save_model
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.flops import TRAINING, ModelFlops
from pipeline.fit.stage import fit
from pipeline.fit.training.throughput import matmul_peak, peak_memory
from pipeline.fit.training.trainer import Trainer, TrainerCallback

ENDLESS = 10**6
"""Optimizer steps that no run gets to: the clock ends it."""


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class DoneError(Exception):
    """Ends a training from within, when all is measured."""


class Clock:
    """Stops the time of optimizer steps, and writes snapshots when they are due."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._now = CLOCKS[settings["clock"]]
        self._paused = 0.0
        self.model: Any = None
        self.optimizer: Any = None
        """Where it is set, the steps of others do not count: it may be made of two."""
        self.ends: list[float] = []
        """When each step was done, in seconds since the first was, pauses left out."""
        self.snapshots: list[dict[str, Any]] = []

    def __call__(self, optimizer: Any, *_: Any) -> None:
        """Take in that an optimizer has done a step."""
        if self.optimizer not in (None, optimizer):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self._now()
        if not self.ends:
            self._paused = now
        self.ends.append(now - self._paused)
        if self._settings["marks"] and self._due():
            self._snapshot()
        self._paused += self._now() - now
        if self.ends[-1] >= self._settings["seconds"] or self.steps >= self._settings["steps"]:
            raise DoneError

    @property
    def steps(self) -> int:
        """The steps that count."""
        return len(self.ends) - 1

    def _due(self) -> bool:
        marks = self._settings["marks"]
        reached = sum(self.ends[-1] >= mark for mark in marks)
        return reached > len(self.snapshots)

    def _snapshot(self) -> None:
        folder = self._folder / f"step-{len(self.ends)}"
        save_model(folder, self.model, Path(self._settings["prepared"]) / "tokenizer")
        taken = {"step": len(self.ends), "seconds": self.ends[-1], "folder": str(folder)}
        self.snapshots.append(taken)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    path = Path(sys.argv[2])
    data = SupervisedDataset(settings["prepared"])
    settings["output"] = str(path.with_suffix(".output"))
    clock = Clock(settings, path.with_suffix(""))
    hook = register_optimizer_step_post_hook(clock)
    side = ours if settings["side"].startswith("ours") else stock
    try:
        rows_of = side(settings, clock, data)
    finally:
        hook.remove()
    result = measured(settings, clock, data, rows_of)
    path.with_suffix(".tmp").write_text(json.dumps(result, indent=2), encoding="utf-8")
    path.with_suffix(".tmp").replace(path)


class ShowTo(TrainerCallback):
    """Shows a clock the model that is trained, and its optimizer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_begin(self, trainer: Trainer) -> None:
        model: Any = trainer.model
        self._clock.model = getattr(model, "module", model).model
        self._clock.optimizer = trainer.train_state.optimizer


def ours(settings: dict[str, Any], clock: Clock, data: SupervisedDataset) -> Any:
    """Train with ``pipeline.fit``; return a function from a step to its rows."""
    config = FitConfig(
        data_path=settings["prepared"],
        model_name_or_path=settings["model"],
        output_dir=settings["output"],
        per_device_train_batch_size=settings["rows_at_once"],
        train_batch_size=settings["rows"],
        group_by_length=settings["side"] != "ours-ungrouped",
        eval_strategy="no",
        **common(settings),
    )
    with contextlib.suppress(DoneError):
        fit(config, callback=ShowTo(clock))
    plan = BatchSampler(
        *data.lengths,
        global_batch_size=settings["rows"],
        seed=settings["seed"],
        group_by_length=config.group_by_length,
    )
    return plan.rows_of


def stock(settings: dict[str, Any], clock: Clock, data: SupervisedDataset) -> Any:
    """Train with ``Seq2SeqTrainer``; return a function from a step to its rows."""
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    from pipeline import make_supervised_data_module

    prepared = Path(settings["prepared"])
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    clock.model = AutoModelForSeq2SeqLM.from_pretrained(settings["model"])
    module = make_supervised_data_module(tokenizer, SimpleNamespace(data_path=str(prepared)))
    del module["eval_dataset"]
    arguments = Seq2SeqTrainingArguments(
        output_dir=settings["output"],
        per_device_train_batch_size=settings["rows_at_once"],
        gradient_accumulation_steps=settings["rows"] // settings["rows_at_once"],
        train_sampling_strategy="group_by_length" if settings["side"] == "grouped" else "random",
        report_to="none",
        disable_tqdm=True,
        **common(settings),
    )
    trainer = Seq2SeqTrainer(model=clock.model, args=arguments, **module)
    # Its sampler begins with the longest rows, and a short run would meet no others.
    mixed = settings["side"] == "grouped" and not settings["marks"]
    drawn = Drawn(trainer, mixed=settings["rows"] if mixed else None)
    with contextlib.suppress(DoneError):
        trainer.train()
    return drawn.rows_of(settings["rows"])


def common(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that both trainers have, by the names that both have."""
    names = ("learning_rate", "warmup_steps", "bf16", "optim", "seed")
    schedule = {"lr_scheduler_type": "constant_with_warmup", "save_strategy": "no"}
    values = {name: settings[name] for name in names} | schedule | {"max_steps": ENDLESS}
    if rate := settings.get("muon_learning_rate"):
        values |= {"optim": "muon", "learning_rate": rate}
    return values


class Drawn:
    """Notes the rows that a trainer's sampler gives.

    Args:
        trainer: Not started yet.
        mixed: Where given, steps of so many rows come in random order.
    """

    def __init__(self, trainer: Any, mixed: int | None) -> None:
        self.rows: list[int] = []
        self._length = len(trainer.train_dataset)
        make = trainer._get_train_sampler

        def noting(*args: Any) -> Any:
            return Noting(make(*args), self.rows, mixed)

        trainer._get_train_sampler = noting

    def rows_of(self, global_batch_size: int) -> Any:
        """Return a function from a step to its rows; the last of an epoch may have less."""

        def rows(step: int) -> Any:
            epoch, at = divmod(step, math.ceil(self._length / global_batch_size))
            begin, end = epoch * self._length + at * global_batch_size, (epoch + 1) * self._length
            return np.array(self.rows[begin : min(begin + global_batch_size, end)])

        return rows


class Noting(torch.utils.data.Sampler[int]):
    """A sampler that notes what it gives."""

    def __init__(self, sampler: Any, rows: list[int], mixed: int | None) -> None:
        self._sampler, self._rows, self._mixed = sampler, rows, mixed

    def __iter__(self) -> Any:
        for row in self._sampler if self._mixed is None else self._mix(self._mixed):
            self._rows.append(int(row))
            yield row

    def _mix(self, count: int) -> Iterator[int]:
        rows = list(self._sampler)
        whole = len(rows) // count * count
        steps = [rows[i : i + count] for i in range(0, whole, count)]
        order = torch.randperm(len(steps)).tolist()
        return itertools.chain(*(steps[i] for i in order), rows[whole:])

    def __len__(self) -> int:
        return len(self._sampler)


def measured(
    settings: dict[str, Any], clock: Clock, data: SupervisedDataset, rows_of: Any
) -> dict[str, Any]:
    """Return what a side took, and what it trained on in that time."""
    flops = ModelFlops.of(clock.model.config)
    encoder, decoder = data.lengths
    counted = np.concatenate([rows_of(step) for step in range(1, len(clock.ends))])
    device = next(clock.model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "settings": {name: value for name, value in settings.items() if name != "output"},
        "steps": clock.steps,
        "seconds": clock.ends[-1],
        "target_tokens": int(decoder[counted].sum()),
        "useful_flops": TRAINING * float(flops(encoder[counted], decoder[counted]).sum()),
        "matmul_peak": matmul_peak(device, torch.bfloat16 if settings["bf16"] else torch.float32),
        "peak_memory": peak_memory(device),
        "device": name,
        "threads": torch.get_num_threads(),
        "snapshots": clock.snapshots,
    }


if __name__ == "__main__":
    main()
