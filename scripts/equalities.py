"""Is a run the same on any number of processes, stopped and resumed anywhere? A table.

    python scripts/equalities.py [--only WORD]

A tiny T5 is trained on the sample that ships, in processes on gloo; a stop is a SIGTERM. Each line
compares a run with the same run in one session: the largest difference of a value in the log,
relative, and of a weight, absolute. With dropout, where processes draw numbers of their own, the
other run has as many processes, and nothing may differ. Exits with 1 where more does than may.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the repository is where it is imported from
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.config import FitConfig, PrepareConfig
from pipeline.world import World
from scripts.ranks import run_in
from scripts.tiny_t5 import make_tiny_t5, read_texts

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "raw" / "sample.json"
VALUES = ("loss", "grad_norm", "eval_loss", "learning_rate")
STOP = signal.SIGTERM
Sittings = tuple[tuple[int, int], ...]
"""Of each: how many processes, and after which step it is stopped; 0: never."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that must all be the same."""

    name: str
    runs: dict[str, tuple[Sittings, dict[str, Any]]]
    """Sittings and changed settings, by name."""
    settings: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    """Of the run that they are compared with."""
    dropout: float = 0.0
    limit: float = 1e-4


def groups() -> list[Group]:
    """Return what is compared."""
    return [
        Group(
            name="8 rows a step",
            runs={
                "2 processes": (((2, 0),), {}),
                "4 processes": (((4, 0),), {}),
                "2 processes x 4 rows": (((2, 0),), _per_device(4)),
                "4 processes x 2 rows": (((4, 0),), _per_device(2)),
                "2 processes x 2 rows x 2": (((2, 0),), _per_device(2, steps=2)),
                "1 row at once": (((1, 0),), {"per_device_train_batch_size": 1}),
                "started on 2, resumed on 1": (((2, 7), (1, 0)), {}),
                "started on 2, resumed on 4": (((2, 7), (4, 0)), {}),
                "started on 4, resumed on 1": (((4, 9), (1, 0)), {}),
                "started on 1, resumed on 4": (((1, 14), (4, 0)), {}),
                "on 2, on 1, on 4, on 2": (((2, 5), (1, 11), (4, 13), (2, 0)), {}),
            },
        ),
        Group(
            name="6 rows a step, 1 left over",
            settings={"train_batch_size": 6, "num_data": 61},
            runs={f"{n} processes": (((n, 0),), {}) for n in (2, 4)},
        ),
        Group(
            name="1 row a step",
            settings={"train_batch_size": 1},
            runs={f"{n} processes": (((n, 0),), {}) for n in (2, 4)},
        ),
        Group(
            name="Adafactor",
            settings={"optim": "adafactor"},
            runs={f"{n} processes": (((n, 0),), {}) for n in (2, 4)},
        ),
        Group(
            name="Muon",
            settings={"optim": "muon", "learning_rate": 2e-4},
            runs={f"{n} processes": (((n, 0),), {}) for n in (2, 4)},
        ),
        Group(
            name="LoRA",
            settings={"lora_r": 4, "lora_dropout": 0.0},
            runs={
                **{f"{n} processes": (((n, 0),), {}) for n in (2, 4)},
                "started on 2, resumed on 1": (((2, 7), (1, 0)), {}),
            },
        ),
        *(
            Group(
                name=f"dropout, {n} process{'es' * (n > 1)}",
                processes=n,
                dropout=0.1,
                limit=0.0,
                runs={
                    "stopped and gone on": (((n, 7), (n, 0)), {}),
                    "stopped three times": (((n, 3), (n, 12), (n, 13), (n, 0)), {}),
                },
            )
            for n in (1, 2, 4)
        ),
    ]


def _per_device(rows: int, steps: int = 1) -> dict[str, Any]:
    return {
        "train_batch_size": None,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": steps,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="groups whose name has this word")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as work:
        print("| run | " + " | ".join(VALUES) + " | weights |\n" + "| --- " * 6 + "|")
        for group in groups():
            for label, found in compare(group, Path(work)) if args.only in group.name else ():
                cells = [f"{value:.1e}" if value else "0" for value in found.values()]
                print(f"| {group.name}: {label} | " + " | ".join(cells) + " |", flush=True)
                failed += max(found.values()) > group.limit
    if failed:
        sys.exit(f"{failed} runs differ by more than they may")


def compare(group: Group, work: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name of each run of a group, and by how much it differs: see ``differences``."""
    folder = work / group.name.replace(" ", "-")
    model = _model(work, group.dropout)
    config = _config(model, _prepared(work), folder / "one", **group.settings)
    one = sit(config, ((group.processes, 0),), folder / "said")
    for number, (label, (sittings, changes)) in enumerate(group.runs.items()):
        out = str(folder / f"run-{number}")
        other = dataclasses.replace(config, output_dir=out, **changes)
        yield label, differences(one, sit(other, sittings, folder / "said"))


def sit(config: FitConfig, sittings: Sittings, said: Path) -> Path:
    """Run in so many sittings; return the trained folder."""
    for processes, last in sittings:
        expect = 128 + STOP if last else 0
        run_in(processes, fit_until, config, last, folder=said, expect=expect)
    return Path(config.output_dir)


def fit_until(config: FitConfig, last: int) -> None:
    """Run ``fit``, and send this process a signal when a step begins, the last; 0: never."""
    from pipeline.fit.stage import fit
    from pipeline.fit.training.trainer import TrainerCallback

    class StopAt(TrainerCallback):
        def on_step_begin(self, step: int) -> None:
            if step == last and World.from_environment().is_main:
                os.kill(os.getpid(), STOP)

    fit(config, callback=StopAt())


def differences(one: Path, other: Path) -> dict[str, float]:
    """Return the largest difference of each of ``VALUES`` and of the weights."""
    from safetensors.torch import load_file

    logs = [_log(folder) for folder in (one, other)]
    assert [sorted(entry) for entry in logs[0]] == [sorted(entry) for entry in logs[1]]
    found = {
        name: max(
            abs(first[name] - second[name]) / max(abs(first[name]), 1e-30)
            for first, second in zip(*logs, strict=True)
            if name in first
        )
        for name in VALUES
    }
    names = ("model.safetensors", "adapter_model.safetensors")
    file = next(name for name in names if (one / name).is_file())
    first, second = load_file(one / file), load_file(other / file)
    assert first.keys() == second.keys()
    return found | {
        "weights": max(float((first[name] - second[name]).abs().max()) for name in first)
    }


def _log(folder: Path) -> list[dict[str, float]]:
    state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
    entries: list[dict[str, float]] = state["log_history"]
    return [entry for entry in entries if "loss" in entry or "eval_loss" in entry]


def _model(work: Path, dropout: float) -> Path:
    folder = work / f"model-{dropout}"
    if not folder.exists():
        make_tiny_t5(folder, read_texts(SAMPLE))
        config = json.loads((folder / "config.json").read_text("utf-8"))
        text = json.dumps(config | {"dropout_rate": dropout})
        (folder / "config.json").write_text(text, "utf-8")
    return folder


def _prepared(work: Path) -> Path:
    from pipeline.prepare.stage import prepare

    return prepare(
        PrepareConfig(
            data_path=(str(SAMPLE),),
            model_name_or_path=str(_model(work, 0.0)),
            output_dir=str(work / "prepared"),
            model_max_length=256,
            eval_fraction=0.1,
        )
    )


def _config(model: Path, data: Path, out: Path, **changes: Any) -> FitConfig:
    settings = {
        "data_path": str(data),
        "model_name_or_path": str(model),
        "output_dir": str(out),
        "max_steps": 18,
        "train_batch_size": 8,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "eval_steps": 6,
        "save_strategy": "no",
    }
    return FitConfig(**settings | changes)


if __name__ == "__main__":
    main()
