"""A file to its records, as a stream: a file larger than memory works.

A JSON array is scanned one element at a time over a sliding window of text; JSON Lines are split
at newlines; Parquet comes in record batches. Whatever is wrong with a file, each whole record
before the fault comes out, then one ``Fault``; JSON Lines goes on with the next line.

Python's own ``json`` is used rather than a faster parser: it reads a real export at 260 MB/s,
keeps lone surrogates (which others refuse) for us to mend, and lets a number nobody reads be of
any size.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.prepare.formats import BOM, BrokenStreamError, format_of, open_file, read_bytes
from pipeline.prepare.sources import Source


class NumberText(str):
    """A JSON number as it was written."""


@dataclass(slots=True)
class Record:
    """One whole record: position in the file, value, and JSON text (Parquet has none)."""

    position: int
    value: Any
    text: str | None


@dataclass(slots=True)
class Fault:
    """A place that is no record: the reason's name, what is wrong, and the text if there is any."""

    position: int
    reason: str
    detail: str
    text: str | None = None


def read_records(
    source: Source, advance: Callable[[int], None] = lambda _: None
) -> Iterator[Record | Fault]:
    """Yield the records and faults of a file in order; ``advance`` hears of each byte read.

    Raises:
        InputError: The file cannot be opened.
    """
    kind = format_of(source.path)
    if kind == "parquet":
        yield from _read_parquet(source, advance)
        return
    with open_file(source.path) as file:
        chunks = read_bytes(file, advance)
        yield from _read_array(chunks) if kind == "json" else _read_lines(chunks)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(
    parse_int=NumberText, parse_float=NumberText, parse_constant=_refuse_constant
)
_SPACE = re.compile(r"[ \t\n\r]*")
_NOT_SPACE = re.compile(rb"[^ \t\n\r]")


# --- JSON array -----------------------------------------------------------------------------------


class _Window:
    """A sliding window over decoded text: ``text`` grows on demand and is cut at ``at``."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.text, self.at, self.ended = "", 0, False
        self.fault: tuple[str, str] | None = None
        self._chunks = chunks
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode

    def grow(self) -> None:
        """Drop what was read, and take in at least as much as is left, so that growing is cheap."""
        self.text, self.at = self.text[self.at :], 0
        parts, size, goal = [self.text], 0, len(self.text)
        while not self.ended and (size == 0 or size < goal):
            part = self._next()
            parts.append(part)
            size += len(part)
        self.text = "".join(parts)

    def skip_space(self) -> str:
        """Move to the next character that is no space and return it; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.grow()

    def _next(self) -> str:
        try:
            chunk = next(self._chunks, b"")
        except BrokenStreamError as error:
            chunk, self.fault = b"", ("cut_off", str(error))
        self.ended = not chunk
        try:
            return self._decode(chunk, self.ended and self.fault is None)
        except UnicodeDecodeError as error:
            self.ended = True
            cut = error.end == len(error.object) and not chunk
            self.fault = (
                ("cut_off", "ends inside a character")
                if cut
                else ("invalid_utf8", f"byte {error.object[error.start]:#04x} is no UTF-8")
            )
            return bytes(error.object[: error.start]).decode("utf-8")


def _read_array(chunks: Iterator[bytes]) -> Iterator[Record | Fault]:
    window, position = _Window(chunks), 0
    window.skip_space()
    window.at += 1  # the bracket that format_of saw
    mark = window.skip_space()
    while position or mark != "]":
        found = _next_value(window, position)
        yield found
        if isinstance(found, Fault) and found.text is None:
            return
        position += 1
        mark = window.skip_space()
        if mark == "]":
            break
        if mark != ",":
            if mark:
                yield Fault(position, "broken_json", f"a comma or ] was expected, not {mark!r}")
            else:
                yield Fault(position, *(window.fault or ("cut_off", "the array has no end")))
            return
        window.at += 1
        window.skip_space()
    window.at += 1
    if trailing := window.skip_space():
        yield Fault(position, "broken_json", f"text after the array's end: {trailing!r}")
    elif window.fault:
        yield Fault(position, *window.fault)


def _next_value(window: _Window, position: int) -> Record | Fault:
    """Decode the value at the window's place, growing the window while it is incomplete."""
    while True:
        try:
            value, end = _DECODER.raw_decode(window.text, window.at)
        except json.JSONDecodeError as error:
            if window.ended and _ends_early(error):
                return Fault(position, *(window.fault or _CUT_IN_RECORD))
            if window.ended or not _may_go_on(error):
                return Fault(position, "broken_json", error.msg)
        except ValueError as error:
            return Fault(position, "broken_json", str(error))
        except RecursionError:
            return _skip_nested(window, position)
        else:
            # A bare number near the window's end may go on behind it.
            is_number = isinstance(value, NumberText)
            if window.ended or not is_number or len(window.text) - end > _LONGEST_BEGUN:
                text, window.at = window.text[window.at : end], end
                return Record(position, value, text)
        window.grow()


_CUT_IN_RECORD = ("cut_off", "the file ends inside a record")
# What a number, a word or an escape looks like when the text ends inside it.
_BEGUN = re.compile(
    r"[-+.0-9eE]*|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?|N(?:a)?|-?I(?:nfinit?)?|[\\u0-9a-fA-F]{1,11}"
)
_LONGEST_BEGUN = 64


def _ends_early(error: json.JSONDecodeError) -> bool:
    """Tell whether a fault is that the text ends inside a value."""
    # "Unterminated string" points at the string's start, any other fault at its own place.
    rest = error.doc[error.pos : error.pos + _LONGEST_BEGUN].rstrip(" \t\n\r")
    return error.msg.startswith("Unterminated") or _BEGUN.fullmatch(rest) is not None


def _may_go_on(error: json.JSONDecodeError) -> bool:
    """Tell whether more text might mend a fault: it is near the end of what is there."""
    return error.msg.startswith("Unterminated") or len(error.doc) - error.pos <= _LONGEST_BEGUN


# A string without an end runs to the end of the text: its brackets are none.
_BRACKETS_AND_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


def _skip_nested(window: _Window, position: int) -> Fault:
    """Pass over a value that is nested too deep to decode, and keep its text."""
    while True:
        depth = 0
        for match in _BRACKETS_AND_STRINGS.finditer(window.text, window.at):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            if depth == 0:
                text, window.at = window.text[window.at : match.end()], match.end()
                return Fault(position, "wrong_shape", "nested too deep", text)
        if window.ended:
            return Fault(position, *(window.fault or _CUT_IN_RECORD))
        window.grow()


# --- JSON Lines -----------------------------------------------------------------------------------


def _read_lines(chunks: Iterator[bytes]) -> Iterator[Record | Fault]:
    position = 0
    broken: str | None = None
    lines = _split_lines(chunks)
    while True:
        try:
            line, is_last = next(lines)
        except StopIteration:
            break
        except BrokenStreamError as error:
            broken = str(error)
            break
        if position == 0:
            line = line.removeprefix(BOM)
        if _NOT_SPACE.search(line):
            yield _read_line(line, position, is_last)
            position += 1
    if broken is not None:
        yield Fault(position, "cut_off", broken)


def _split_lines(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each line, and whether it is the last one, without its newline."""
    parts: list[bytes] = []
    failed: BrokenStreamError | None = None
    while True:
        try:
            chunk = next(chunks, b"")
        except BrokenStreamError as error:
            chunk, failed = b"", error
        if not chunk:
            break
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        for piece in rest:
            yield b"".join(parts), False
            parts = [piece]
    if failed is None:
        yield b"".join(parts), True
        return
    # A line that the cut left whole is a record; a part of one belongs to the fault.
    line = b"".join(parts)
    if isinstance(_read_line(line, 0, True), Record):
        yield line, False
    raise failed


def _read_line(line: bytes, position: int, is_last: bool) -> Record | Fault:
    try:
        text = line.decode("utf-8").strip(" \t\r")
    except UnicodeDecodeError as error:
        detail = f"byte {line[error.start]:#04x} is no UTF-8"
        return Fault(position, "invalid_utf8", detail, line.decode("utf-8", "replace"))
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        reason = "cut_off" if is_last and _ends_early(error) else "broken_json"
        return Fault(position, reason, error.msg, text)
    except ValueError as error:
        return Fault(position, "broken_json", str(error), text)
    except RecursionError:
        return Fault(position, "wrong_shape", "nested too deep", text)
    if end != len(text):
        return Fault(position, "broken_json", "more than one value in a line", text)
    return Record(position, value, text)


# --- Parquet --------------------------------------------------------------------------------------


def _read_parquet(source: Source, advance: Callable[[int], None]) -> Iterator[Record | Fault]:
    position, size = 0, source.path.stat().st_size
    try:
        with open_file(source.path) as opened, pq.ParquetFile(opened) as file:
            for batch in file.iter_batches(batch_size=256):
                for i in range(batch.num_rows):
                    yield _read_row(batch.slice(i, 1), position)
                    position += 1
                advance(size * batch.num_rows // file.metadata.num_rows)
    except (OSError, pa.ArrowException, ValueError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Fault(position, "broken_parquet", detail)


def _read_row(row: pa.RecordBatch, position: int) -> Record | Fault:
    try:
        (value,) = row.to_pylist()
        return Record(position, value, None)
    except (UnicodeDecodeError, ValueError) as error:
        return Fault(position, "invalid_utf8", str(error))
