"""What ``rejected.jsonl`` says as a whole: which faults there were, how often, and one of each."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PreparedFolderError

FILENAME = "rejected.jsonl"
_NUMBER = re.compile(r"\d+")


@dataclass(slots=True)
class RejectionKind:
    """Records that were rejected for the same thing, wherever in the record it was."""

    reason: str
    detail: str
    """Of the first of them, as the others but for numbers."""
    count: int
    example: dict[str, Any]
    """The first: file, position, reason, detail, and the record, or its text."""

    @property
    def keys(self) -> list[str]:
        """The keys of the first, where it parsed and is an object."""
        record = self.example.get("record")
        return list(record) if isinstance(record, dict) else []


def rejection_kinds(folder: Path) -> list[RejectionKind]:
    """Return what a prepared folder's rejections have in common, the commonest first.

    Raises:
        PreparedFolderError: The file is missing or damaged.
    """
    kinds: dict[tuple[str, str], RejectionKind] = {}
    for line in rejected_records(folder):
        reason, detail = str(line["reason"]), str(line["detail"])
        kind = (reason, _NUMBER.sub("N", detail))
        if kind in kinds:
            kinds[kind].count += 1
        else:
            kinds[kind] = RejectionKind(reason, detail, 1, line)
    return sorted(kinds.values(), key=lambda kind: -kind.count)


def rejected_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a prepared folder's rejections: file, position, reason, detail, record or text.

    Raises:
        PreparedFolderError: The file is missing or damaged.
    """
    path = folder / FILENAME
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line, parse_int=_integer)
    except (OSError, ValueError, RecursionError) as error:
        raise PreparedFolderError(
            "the list of rejected records cannot be read",
            where=path,
            got=error,
            do="run duet prepare again",
        ) from error


def _integer(text: str) -> int | str:
    """Return a whole number; one that is too long for Python stays as it was written."""
    try:
        return int(text)
    except ValueError:
        return text
