"""``rejected.jsonl``: each record that was left out, with its file, position, reason and itself."""

import json
import re

from pipeline.prepare.files.json_values import Fault, Record
from pipeline.prepare.read.values import RejectedError

_SHOWN = 200  # characters of a record


def rejection_line(piece: int, found: Record | Fault, error: RejectedError) -> str:
    """Return what a chunk keeps of a record that was left out, in one line.

    The number of its piece, its position there, and what ``left_out`` gives.
    """
    return f"{piece}\t{found.position}\t{left_out(found, error)}"


def parse_line(line: str) -> tuple[int, int, str]:
    """Return the parts of what ``rejection_line`` gave."""
    piece, position, rest = line.rstrip("\n").split("\t", 2)
    return int(piece), int(position), rest


def left_out(found: Record | Fault, error: RejectedError) -> str:
    """Return why a record was left out, and itself, as the inside of a JSON object.

    The record is whole where it parsed, else its text if there is any.
    """
    rest = json.dumps({"reason": error.reason, "detail": error.detail})[1:-1]
    if isinstance(found, Record):
        rest += f', "record": {_json_line(found)}'
    elif found.text is not None:
        rest += f', "text": {json.dumps(found.text)}'
    return rest


def published_line(file: str, position: int, rest: str) -> str:
    """Return a line of ``rejected.jsonl``: a file, a position there, and what ``left_out`` gave."""
    return f"{json.dumps({'file': file, 'position': position})[:-1]}, {rest}}}"


def in_words(line: str) -> str:
    """Return a line of ``rejected.jsonl`` for people: which record, why, and how it begins.

    A record is shown as it was written, and not parsed: it may hold numbers of any size.

    >>> in_words('{"file": "a", "position": 3, "reason": "cut_off", "detail": "in", "text": "{"}')
    'record 3 of a: cut_off: in; {'
    """
    head, found, what = line.rstrip("\n").partition(', "record": ')
    if found:
        what = what[:-1]
    else:
        head, found, what = line.rstrip("\n").partition(', "text": ')
        what = json.loads(what[:-1]) if found else ""
    fields = json.loads(head + "}" if found else head)
    shown = f"; {what[:_SHOWN]}" + ("…" if what[_SHOWN:] else "") if what else ""
    return "record {position} of {file}: {reason}: {detail}".format_map(fields) + shown


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
