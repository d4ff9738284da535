"""JSON Lines to their records: each line is one, and a line that is none is left out alone."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.prepare.found import Fault, FindAt, Known, Record
from pipeline.prepare.read.formats import BOM, BrokenStreamError, Content
from pipeline.prepare.read.json_value import DECODER, ends_early
from pipeline.store.passages import Passage

_NOT_SPACE = re.compile(rb"[^ \t\n\r]")


@dataclass(slots=True)
class _Line:
    """A line that is not blank, without its newline."""

    text: bytes
    is_last: bool
    offset: int | None
    """The byte at which it begins, where that is known."""

    def record(self, position: int) -> Record | Fault:
        found = _parse(self.text, position, self.is_last)
        found.offset = self.offset
        return found


def read_lines(content: Content, find: FindAt | None = None) -> Iterator[Record | Fault | Known]:
    """Yield what is found in JSON Lines, in order.

    Args:
        content: Of the file.
        find: Looks for passages that are known. One that is taken is passed over.
    """
    lines: Iterator[_Line] = _lines(content)
    position = 0
    try:
        while (line := next(lines, None)) is not None:
            offset = line.offset
            passage = find(offset) if find and offset is not None else None
            if passage is not None and offset is not None:
                ahead = _lines(content, offset + passage.size)
                behind = next(ahead, None)
                known = _known(passage, position, offset, behind)
                if known is not None and behind is not None:
                    yield known
                    if known.taken:  # another passage may begin with what is behind it
                        lines, position = itertools.chain([behind], ahead), known.following.position
                        continue
            yield line.record(position)
            position += 1
    except BrokenStreamError as error:
        yield Fault(position, "cut_off", str(error))


def _known(passage: Passage, position: int, offset: int, behind: _Line | None) -> Known | None:
    """Return a passage with the record behind it; None where there is none."""
    following = behind.record(position + passage.records) if behind is not None else None
    if not isinstance(following, Record):
        return None
    return Known(passage, position, offset, following)


def _lines(content: Content, start: int = 0) -> Iterator[_Line]:
    """Yield the lines from a byte on, but for blank ones.

    Raises:
        BrokenStreamError: After the last one, where the stream is cut or damaged.
    """
    is_first, offset = not start, start
    for line, is_last in _split_lines(content.chunks(start)):
        size = len(line) + 1
        if is_first and line.startswith(BOM):
            line = line.removeprefix(BOM)
            offset, size = offset + len(BOM), size - len(BOM)
        if _NOT_SPACE.search(line):
            yield _Line(line, is_last, offset if content.has_places else None)
            is_first = False
        offset += size


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
    if isinstance(_parse(line, 0, True), Record):
        yield line, False
    raise failed


def _parse(line: bytes, position: int, is_last: bool) -> Record | Fault:
    try:
        text = line.decode("utf-8").strip(" \t\r")
    except UnicodeDecodeError as error:
        detail = f"byte {line[error.start]:#04x} is no UTF-8"
        return Fault(position, "invalid_utf8", detail, line.decode("utf-8", "replace"))
    try:
        value, end = DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        reason = "cut_off" if is_last and ends_early(error) else "broken_json"
        return Fault(position, reason, error.msg, text)
    except ValueError as error:
        return Fault(position, "broken_json", str(error), text)
    except RecursionError:
        return Fault(position, "wrong_shape", "nested too deep", text)
    if end != len(text):
        return Fault(position, "broken_json", "more than one value in a line", text)
    return Record(position, value, text)
