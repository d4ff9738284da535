"""What tests of chunks share: an input of many segments, and what a run leaves on disk."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.prepare.engines import local
from pipeline.prepare.files import anchors, planning
from tests.conftest import record

_TEXT = "the a of and to in is it you that he was for on are with as they be at < > - == 12"
WORDS = _TEXT.split()
SMALL = 4_000
"""Segments of a few thousand bytes: some twenty of an input of 100 kB."""


_MODULES = {"anchors": anchors, "planning": planning, "local": local}


def cut_at(patch: pytest.MonkeyPatch, usual: int = SMALL) -> None:
    """Cut segments of another size than usual, in this process and in those it forks."""
    for name, value in small_sizes(usual).items():
        module, _, constant = name.partition(".")
        patch.setattr(_MODULES[module], constant, value)


def small_sizes(usual: int = SMALL) -> dict[str, int]:
    """Return the constants that decide where segments end, by module and name."""
    return {
        "anchors.MIN": usual // 4,
        "anchors.USUAL": usual,
        "planning._BLOCK": 4 * usual,
        "planning._LOOKAHEAD": 2 * usual,
        "local._BYTES_FOR_WORKERS": 1,
    }


def code_for_small(usual: int = SMALL) -> str:
    """Return Python code that does the same in another process."""
    sizes = [f"{name} = {value}" for name, value in small_sizes(usual).items()]
    imports = [
        "from pipeline.prepare.files import anchors, planning",
        "from pipeline.prepare.engines import local",
    ]
    return "\n".join([*imports, *sizes])


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
    """Return every file below a folder, but for the settings that the command leaves there."""
    found = (p for p in folder.rglob("*") if p.is_file())
    files = sorted(p for p in found if not p.name.lstrip(".").startswith("config.yaml"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def visible(output: Path) -> list[Path]:
    """Return what a user sees in an output folder."""
    return [p for p in output.iterdir() if not p.name.startswith(".")] if output.exists() else []


def leftovers(output: Path) -> list[str]:
    """Return what a run that ended should have taken away; but for the command's own settings."""
    found = [*output.glob(".tmp-*"), *output.rglob(".*.old"), *output.rglob(".*.tmp")]
    names = [str(path.relative_to(output)) for path in found]
    return [name for name in names if "/.config.yaml." not in name]
