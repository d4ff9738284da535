"""What tests of kept parts share: an input of many of them, and what a run leaves on disk."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.prepare import cutting
from tests.conftest import record

_NAMES = ("MIN_SIZE", "MEAN_SIZE", "MAX_SIZE")
USUAL_SIZES: tuple[int, ...] = tuple(getattr(cutting, name) for name in _NAMES)
SIZES = (1_500, 5_000, 20_000)
"""Parts of a few thousand characters: some twenty of an input of 100 kB."""
_TEXT = "the a of and to in is it you that he was for on are with as they be at < > - == 12"
WORDS = _TEXT.split()


def cut_at(patch: pytest.MonkeyPatch, sizes: Sequence[int] = SIZES) -> None:
    """Cut parts at other sizes than usual, in this process."""
    for name, size in zip(_NAMES, sizes, strict=True):
        patch.setattr(cutting, name, size)


def generated(count: int, seed: int) -> list[Any]:
    """Return records of two pairs each."""
    draw = random.Random(seed)
    return [
        record(
            f"s{seed}x{i}",
            *(" ".join(draw.choices(WORDS, k=draw.randint(1, 50))) for _ in range(4)),
        )
        for i in range(count)
    ]


def write(path: Path, records: Sequence[Any]) -> Path:
    """Write records as JSON Lines."""
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, the manifest included."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def visible(output: Path) -> list[Path]:
    """Return what a user sees in an output folder."""
    return [p for p in output.iterdir() if not p.name.startswith(".")] if output.exists() else []


def leftovers(output: Path) -> list[str]:
    """Return what a run that ended should have taken away."""
    found = [*output.glob(".tmp-*"), *output.rglob(".*.old"), *output.rglob(".*.tmp")]
    return [str(path.relative_to(output)) for path in found]
