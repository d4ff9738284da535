"""An output folder of ``fit`` -> a Run: its log, what it was made of, its sample answers.

Read during a run, too, and of runs of the Hugging Face trainer, which has the same log.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.json_object import read_json_object

LOG, STATE, METADATA, SAMPLES = "log.jsonl", "trainer_state.json", "run.json", "samples.jsonl"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A generated answer."""

    step: int
    question: str
    answer: str
    reference: str = ""
    """The answer that stands in the data, where it is told."""
    name: str = ""
    """Of the question, the same at each evaluation."""
    is_cut: bool = False
    """Whether it did not end by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is known of a run."""

    name: str
    entries: list[dict[str, float]]
    """Of the log, in order; each has a step. What is no number is left out."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What stands in ``run.json``, if it is there."""
    total_steps: int | None = None
    samples: list[Sample] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The step of the last entry."""
        return int(max((entry["step"] for entry in self.entries), default=0))

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Return the steps at which a value was logged, and the values."""
        found = [(entry["step"], entry[key]) for entry in self.entries if key in entry]
        return [step for step, _ in found], [value for _, value in found]

    def logged(self) -> list[str]:
        """Return the names of the values, in the order in which they first come."""
        return list(dict.fromkeys(key for entry in self.entries for key in entry))


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run's log, or a checkpoint with one."""
    return _log_file(folder) is not None


def read_run(folder: Path, name: str) -> Run:
    """Read a run.

    Args:
        folder: One of which ``is_run`` is true.
        name: What it is called in the page.

    Raises:
        InputError: A file of it cannot be read.
    """
    path = _log_file(folder)
    if path is None:
        raise InputError(
            "no log of a run", where=folder, got="nothing", do="give the --output-dir of fit"
        )
    state = _read_object(folder / STATE) if (folder / STATE).is_file() else {}
    if path.name == LOG:
        entries = list(_read_lines(path))
    else:
        state = _read_object(path)
        entries = state.get("log_history") or []
    metadata = _read_object(folder / METADATA) if (folder / METADATA).is_file() else {}
    samples = _read_lines(folder / SAMPLES) if (folder / SAMPLES).is_file() else iter(())
    total = state.get("max_steps", metadata.get("steps"))
    return Run(
        name=name,
        entries=[_numbers(entry) for entry in entries if _is_entry(entry)],
        metadata=metadata,
        total_steps=total if isinstance(total, int) and total > 0 else None,
        samples=[sample for found in samples for sample in samples_of(found)],
    )


def _log_file(folder: Path) -> Path | None:
    """Return the file with a run's log: its own, or that of its newest checkpoint."""
    for name in (LOG, STATE):
        if (folder / name).is_file():
            return folder / name
    found = [
        (int(match[1]), path)
        for path in folder.glob(f"checkpoint-*/{STATE}")
        if (match := _CHECKPOINT.fullmatch(path.parent.name))
    ]
    return max(found)[1] if found else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of JSON Lines; a last line without an end is still being written."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise _unreadable(path, error) from error
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise _unreadable(path, f"line {number}: {error}") from error


def _unreadable(path: Path, got: object) -> InputError:
    return InputError(
        "a file of a run cannot be read",
        where=path,
        got=got,
        do="copy it again, or move it away to do without it",
    )


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and _is_step(entry.get("step"))


def _is_number(value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62
    return is_whole or isinstance(value, float)


def _is_step(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    """Return an entry's numbers; null, which stands for NaN in ``log.jsonl``, is NaN again."""
    found = {name: math.nan if value is None else value for name, value in entry.items()}
    return {name: float(value) for name, value in found.items() if _is_number(value)}


_PLACE = ("eval_set", "conversation_id", "id", "row")
_QUESTIONS = ("question", "prompt", "input", "source", "messages", "conversation")
_ANSWERS = ("answer", "generated", "prediction", "output", "response", "text")
_REFERENCES = ("reference", "expected", "target", "label", "gold")


def samples_of(found: Any) -> Iterator[Sample]:
    """Yield the sample answers of a line of ``samples.jsonl``; none of a line that has none.

    Args:
        found: An object with ``step``, ``answer``, and ``question``, ``reference``, ``eval_set``,
            ``conversation_id``, ``turn`` where they are known, as ``fit`` writes them; or one
            with ``step`` and a list of such objects as ``samples``. Some other usual names are
            read, too.
    """
    if not isinstance(found, dict) or not _is_step(found.get("step")):
        return
    for name in ("samples", "answers"):
        if isinstance(found.get(name), list):
            for one in found[name]:
                if isinstance(one, dict):
                    yield from samples_of({**one, "step": found["step"]})
            return
    answer = _first_text(found, _ANSWERS)
    if answer is None:
        return
    parts = [found[key] for key in _PLACE if found.get(key) is not None]
    parts += [f"turn {found['turn']}"] if found.get("turn") is not None else []
    yield Sample(
        step=int(found["step"]),
        question=_first_text(found, _QUESTIONS) or "",
        answer=answer,
        reference=_first_text(found, _REFERENCES) or "",
        name=", ".join(map(str, parts)),
        is_cut=found.get("finish_reason") == "length",
    )


def _first_text(found: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = found.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            turns = [turn for turn in value if isinstance(turn, dict)]
            said = [(t.get("role", t.get("from")), t.get("content", t.get("value"))) for t in turns]
            return "\n".join(f"{role}: {text}" for role, text in said)
    return None
