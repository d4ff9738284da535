"""``rejected.jsonl``: each record that was left out, with its file, position, reason and itself."""

import json
import re
from pathlib import Path
from typing import Self

from pipeline.prepare.found import Fault, Record
from pipeline.prepare.read.values import RejectedError
from pipeline.store.atomic import output_errors
from pipeline.store.passages import Rejection


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

    def write(self, file: str, rejection: Rejection) -> None:
        """Append a record."""
        head = json.dumps(
            {
                "file": file,
                "position": rejection.position,
                "reason": rejection.reason,
                "detail": rejection.detail,
            }
        )
        body = f", {rejection.body}" if rejection.body else ""
        with output_errors(self._path):
            self._file.write(f"{head[:-1]}{body}}}\n")


def rejection_of(found: Record | Fault, error: RejectedError) -> Rejection:
    """Return what is kept of a record: it is whole where it parsed, else its text if any."""
    body = ""
    if isinstance(found, Record):
        body = f'"record": {_json_line(found)}'
    elif found.text is not None:
        body = f'"text": {json.dumps(found.text)}'
    return Rejection(position=found.position, reason=error.reason, detail=error.detail, body=body)


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
