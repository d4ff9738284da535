"""``rejected.jsonl``: each record that was left out, with its file, position, reason and itself."""

import json
import re
from pathlib import Path
from typing import Self

from pipeline.prepare.files.json_values import Fault, Record
from pipeline.prepare.read.values import RejectedError
from pipeline.store.atomic import output_errors

_SHOWN = 200  # characters of a record


class RejectedFile:
    """Writes ``rejected.jsonl``, one line of JSON a record."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OutputError: It cannot be written.
        """
        self._path = path
        with output_errors(path):
            self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        """Return the file; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        with output_errors(self._path):
            self._file.close()

    def write(self, file: str, position: int, rest: str) -> None:
        """Append a record: its file, its position there, and what ``rejection_line`` ends with."""
        head = json.dumps({"file": file, "position": position})
        with output_errors(self._path):
            self._file.write(f"{head[:-1]}, {rest}}}\n")


def rejection_line(piece: int, found: Record | Fault, error: RejectedError) -> str:
    """Return what a chunk keeps of a record that was left out, in one line.

    The number of its piece, its position there, and the inside of a JSON object: the record is
    whole where it parsed, else its text if there is any.
    """
    rest = json.dumps({"reason": error.reason, "detail": error.detail})[1:-1]
    if isinstance(found, Record):
        rest += f', "record": {_json_line(found)}'
    elif found.text is not None:
        rest += f', "text": {json.dumps(found.text)}'
    return f"{piece}\t{found.position}\t{rest}"


def parse_line(line: str) -> tuple[int, int, str]:
    """Return the parts of what ``rejection_line`` gave."""
    piece, position, rest = line.rstrip("\n").split("\t", 2)
    return int(piece), int(position), rest


def in_words(rest: str) -> str:
    """Return what ``rejection_line`` ends with for people: why, and how the record begins.

    >>> in_words('"reason": "cut_off", "detail": "in a record", "text": "{\\\\"id\\\\""')
    'cut_off: in a record; {"id"'
    """
    why, found, what = rest.partition(', "record": ')
    if not found:
        why, found, what = rest.partition(', "text": ')
        what = json.loads(what) if found else ""
    fields = json.loads(f"{{{why}}}")
    shown = f"; {what[:_SHOWN]}" + ("…" if what[_SHOWN:] else "") if what else ""
    return f"{fields['reason']}: {fields['detail']}{shown}"


def content_of(found: Record | Fault, error: RejectedError) -> str:
    """Return what the fingerprint takes of a record that was left out: nothing of its place."""
    if isinstance(found, Fault):
        return f"{error.detail} {found.text or ''}"
    return json.dumps(found.value, sort_keys=True, default=str)


def _json_line(record: Record) -> str:
    """Return a record's JSON in one line."""
    if record.text is not None:
        # No string holds a newline in its raw form, so these are all between values.
        return re.sub(r"[\r\n][ \t\r\n]*", " ", record.text)
    try:
        return json.dumps(record.value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:  # a NaN in a Parquet column
        return json.dumps(str(record.value), ensure_ascii=False)
