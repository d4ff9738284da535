"""A JSON array to its records, one element at a time over a sliding window of text."""

import codecs
import json
import re
from collections.abc import Iterator

from pipeline.prepare.found import Fault, FindAt, Known, NumberText, Record
from pipeline.prepare.read.formats import BOM, BrokenStreamError, Content
from pipeline.prepare.read.json_value import DECODER, LONGEST_BEGUN, ends_early

_SPACE = re.compile(r"[ \t\n\r]*")


class _Window:
    """A sliding window over decoded text: ``text`` grows on demand and is cut at ``at``.

    Args:
        content: What is decoded.
        start: The byte from which on.
    """

    def __init__(self, content: Content, start: int = 0) -> None:
        self.text, self.at, self.ended = "", 0, False
        self.fault: tuple[str, str] | None = None
        self._chunks = content.chunks(start)
        encoding = "utf-8" if start else "utf-8-sig"  # a mark further on is none
        self._decode = codecs.getincrementaldecoder(encoding)().decode
        if not start and content.has_places and content.at(0, len(BOM)) == BOM:
            start = len(BOM)
        self._offset, self._measured = start, 0  # the byte at which text[_measured] stands

    def offset(self) -> int:
        """Return the byte at which the window's place stands, if it began at a known one."""
        text = self.text[self._measured : self.at]
        self._offset += len(text) if text.isascii() else len(text.encode("utf-8"))
        self._measured = self.at
        return self._offset

    def grow(self) -> None:
        """Drop what was read, and take in at least as much as is left, so that growing is cheap."""
        self.offset()
        self.text, self.at, self._measured = self.text[self.at :], 0, 0
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


def read_array(content: Content, find: FindAt | None = None) -> Iterator[Record | Fault | Known]:
    """Yield what is found in a JSON array, in order.

    Args:
        content: Of the file, a ``[`` first.
        find: Looks for passages that are known. One that is taken is passed over.
    """
    window, position = _Window(content), 0
    window.skip_space()
    window.at += 1  # the bracket that format_of saw
    mark = window.skip_space()
    while position or mark != "]":
        offset = window.offset() if content.has_places else None
        passage = find(offset) if find is not None and offset is not None else None
        if passage is not None and offset is not None:
            ahead, behind = _Window(content, offset + passage.size), position + passage.records
            following = _next_value(ahead, behind)
            if isinstance(following, Record) and following.text is not None:
                known = Known(passage, position, offset, following)
                yield known
                if known.taken:
                    ahead.at -= len(following.text)  # another passage may begin with it
                    window, position = ahead, behind
                    continue
        found = _next_value(window, position)
        found.offset = offset
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
            value, end = DECODER.raw_decode(window.text, window.at)
        except json.JSONDecodeError as error:
            if window.ended and ends_early(error):
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
            if window.ended or not is_number or len(window.text) - end > LONGEST_BEGUN:
                text, window.at = window.text[window.at : end], end
                return Record(position, value, text)
        window.grow()


_CUT_IN_RECORD = ("cut_off", "the file ends inside a record")


def _may_go_on(error: json.JSONDecodeError) -> bool:
    """Tell whether more text might mend a fault: it is near the end of what is there."""
    return error.msg.startswith("Unterminated") or len(error.doc) - error.pos <= LONGEST_BEGUN


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
