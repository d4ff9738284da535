"""Text to the JSON values in it, one after another, over a sliding window: memory stays flat.

White space, line ends, commas and byte-order marks stand between values. A bracket is opened and
its elements are values by the same rule, unless the first of them is a turn: then the array as a
whole is a record.
So arrays, arrays one after another, JSON Lines (with trailing commas too), one array a line and
pretty-printed objects are all the same to it.

A value that is broken is one fault. Reading resumes at the next line that begins with ``{`` or
``[`` no further in than the line where the value began: what stands deeper is a piece of it. Of a
broken object whose ``data`` holds the records, they are read one by one instead.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.prepare.files.elements import (
    DECODER,
    NumberText,
    elements_of,
    is_turn,
    start_of_data,
)
from pipeline.prepare.files.text_window import INDENT, SEPARATORS, TextWindow

_MOST_KEPT = 1 << 16  # characters of a broken value; the rest of a file may be one


@dataclass(slots=True)
class Record:
    """One whole record: value, and JSON text (one of a table has none)."""

    value: Any
    text: str | None = None
    position: int = 0
    """Its place among the records of a piece."""


@dataclass(slots=True)
class Fault:
    """A place that is no record: the reason's name, what is wrong, and the text if there is any."""

    reason: str
    detail: str
    text: str | None = None
    position: int = 0


def records_of(found: Record | Fault) -> Iterator[Record | Fault]:
    """Yield the records that what was found is made of; most are one."""
    elements = elements_of(found.value) if isinstance(found, Record) else None
    if elements is None:
        yield found
    else:
        for element in elements:
            yield from records_of(Record(element))


# What a number, a word or an escape looks like when the text ends inside it.
_BEGUN = re.compile(
    r"[-+.0-9eE]*|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?|N(?:a)?|-?I(?:nfinit?)?|[\\u0-9a-fA-F]{1,11}"
)
_LONGEST_BEGUN = 64  # in characters: where an error is nearer to the end, more text might undo it
_LINE_OF_A_VALUE = re.compile(r"\n([ \t]*)(?=[{\[])")
# A string without an end runs to the end of the text: its brackets are none.
_BRACKETS_AND_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_CUT_IN_RECORD = "the file ends inside a record"
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def ends_early(error: json.JSONDecodeError) -> bool:
    """Return whether an error is that the text ends inside a value."""
    # "Unterminated string" points at the string's start, any other error at its own place.
    rest = error.doc[error.pos : error.pos + _LONGEST_BEGUN].rstrip(" \t\n\r")
    return error.msg.startswith("Unterminated") or _BEGUN.fullmatch(rest) is not None


def may_go_on(error: json.JSONDecodeError) -> bool:
    """Return whether more text might undo an error: it is near the end of what is there."""
    return error.msg.startswith("Unterminated") or len(error.doc) - error.pos <= _LONGEST_BEGUN


def end_fault(brackets: int, position: int) -> Fault | None:
    """Return what is wrong at the end of a file in which nothing was broken, if anything is.

    Args:
        brackets: How many were opened, less those that were closed.
        position: The number of records before it.
    """
    if brackets > 0:
        return Fault("cut_off", "the array has no end", position=position)
    if brackets < 0:
        return Fault("broken_json", "a ] that closes nothing", position=position)
    return None


class ValueReader:
    """Reads the values of a stretch of text, and knows afterwards how it ended.

    Args:
        chunks: The text, UTF-8, without a byte-order mark.
        ends_file: Nothing follows: then a value that starts at the end is cut off. Elsewhere
            the stretch is not clean, and is to be read with what follows.
        error: Why the file ends there, if it should not.
        indent_before: Returns the indent of the line that the text begins in.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        *,
        ends_file: bool = True,
        error: str | None = None,
        indent_before: Callable[[], int] = lambda: 0,
    ) -> None:
        self._window = TextWindow(iter(chunks), indent_before, error)
        self._ends_file, self._is_cut = ends_file, False
        self._opened_data = list[int]()  # the brackets that were open before each broken object
        self.brackets = 0
        """Brackets that were opened, less those that were closed."""
        self.is_resumed = False
        """Whether something was broken: then brackets need not match."""
        self.is_clean = True
        """Whether the text ended between two values."""

    def __iter__(self) -> Iterator[Record | Fault]:
        window = self._window
        while mark := window.skip_separators():
            if mark == "]":
                self.brackets -= 1
                window.at += 1
                yield from self._end_of_data()
            elif mark == "[" and not self._is_list_of_turns():
                self.brackets += 1
                window.at += 1
            else:
                found = self._value()
                if found is not None:
                    yield found
                elif not self._ends_file:
                    self.is_clean = False
                    return
        if window.error is not None and not self._is_cut:
            self._is_cut = self.is_resumed = True
            yield Fault("cut_off", window.error)

    def _is_list_of_turns(self) -> bool:
        """Return whether the array at the window's place begins with a turn."""
        window = self._window
        while True:
            match = SEPARATORS.match(window.text, window.at + 1)
            at = match.end() if match else len(window.text)
            if at < len(window.text):
                if window.text[at] != "{":
                    return False
                try:
                    return is_turn(DECODER.raw_decode(window.text, at)[0])
                except json.JSONDecodeError as error:
                    if not may_go_on(error):
                        return False
                except (ValueError, RecursionError):
                    return False
            if window.ended:
                return False
            window.grow()

    def _value(self) -> Record | Fault | None:
        """Decode the value here; None where the stretch ends in it, or its records come next."""
        window = self._window
        while True:
            try:
                value, end = DECODER.raw_decode(window.text, window.at)
            except json.JSONDecodeError as error:
                if window.ended or not may_go_on(error):
                    if window.ended and not self._ends_file and may_go_on(error):
                        return None
                    if self._opens_data():
                        return None
                    is_cut = window.ended and ends_early(error)
                    detail = error.msg.removesuffix(" at")  # the place is not told
                    return self._fault("cut_off" if is_cut else "broken_json", detail)
            except ValueError as error:
                return None if self._opens_data() else self._fault("broken_json", str(error))
            except RecursionError:
                return None if self._opens_data() else self._skip_nested()
            else:
                # A bare number near the window's end may go on in what follows.
                is_number = isinstance(value, NumberText)
                if window.ended or not is_number or len(window.text) - end > _LONGEST_BEGUN:
                    return self._record(value, end)
            window.grow()

    def _opens_data(self) -> bool:
        """Return whether what is broken holds records, and go to the first of them.

        Where the file goes on after the stretch, all is left to whoever reads to its end.
        """
        window = self._window
        start = start_of_data(window.text, window.at)
        if start is None:
            return False
        if self._ends_file:
            window.at = start
            self._opened_data.append(self.brackets)
            self.brackets += 2
        return True

    def _end_of_data(self) -> Iterator[Record | Fault]:
        """Pass over what follows the records of a broken object, if they end here."""
        if not self._opened_data or self.brackets != self._opened_data[-1] + 1:
            return
        self._opened_data.pop()
        window = self._window
        while (mark := window.skip_separators()) == '"':
            for _ in ("key", "value"):
                found = self._value()
                if not isinstance(found, Record):
                    if found is not None:
                        yield found
                    return
                if window.skip_separators() == ":":
                    window.at += 1
                    window.skip_separators()
        if mark == "}":
            window.at += 1
            self.brackets -= 1

    def _record(self, value: Any, end: int) -> Record | Fault | None:
        window = self._window
        text = window.text[window.at : end]
        escaped = _ESCAPED_BYTE.search(text) if window.has_escapes else None
        if escaped and self._opens_data():
            return None
        window.at = end
        return _invalid(text, escaped) if escaped else Record(value, text)

    def _fault(self, reason: str, detail: str) -> Fault | None:
        """Pass over a broken value; None where the stretch ends before reading can resume."""
        window = self._window
        indent, kept, size = window.indent(), list[str](), 0
        self.is_resumed = True
        while True:
            lines = _LINE_OF_A_VALUE.finditer(window.text, window.at)
            line = next((match for match in lines if len(match[1]) <= indent), None)
            end = line.start() if line else len(window.text)
            if line is None and not window.ended:
                end = _end_of_silence(window.text, window.at)
            piece = window.text[window.at : end]
            if size < _MOST_KEPT:
                kept.append(piece[: _MOST_KEPT - size])
                size += len(kept[-1])
            window.at = end
            if line is not None:
                window.at = line.end()
                break
            if window.ended:
                if not self._ends_file:
                    return None
                break
            window.grow()
        text = "".join(kept).strip()
        if reason != "cut_off" and (escaped := _ESCAPED_BYTE.search(text)):
            return _invalid(text, escaped)
        if reason == "cut_off":
            self._is_cut, detail = True, window.error or _CUT_IN_RECORD
        return Fault(reason, detail, _shown(text))

    def _skip_nested(self) -> Fault | None:
        """Pass over a value that is nested too deep to decode, and keep some of its text."""
        window = self._window
        while True:
            depth = 0
            for match in _BRACKETS_AND_STRINGS.finditer(window.text, window.at):
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
                if depth == 0:
                    text, window.at = window.text[window.at : match.end()], match.end()
                    return Fault("wrong_shape", "nested too deep", _shown(text[:_MOST_KEPT]))
            if window.ended:
                if not self._ends_file:
                    return None
                window.at, self._is_cut, self.is_resumed = len(window.text), True, True
                return Fault("cut_off", window.error or _CUT_IN_RECORD)
            window.grow()


def _end_of_silence(text: str, start: int) -> int:
    """Return where the last line begins if it may yet begin with a bracket, else the text's end."""
    newline = text.rfind("\n", start)
    match = INDENT.match(text, newline + 1) if newline >= 0 else None
    return newline if match is not None and match.end() == len(text) else len(text)


def _invalid(text: str, escaped: re.Match[str]) -> Fault:
    byte = ord(escaped[0]) - 0xDC00
    return Fault("invalid_utf8", f"byte {byte:#04x} is not UTF-8", _shown(text[:_MOST_KEPT]))


def _shown(text: str) -> str:
    """Return a text that was decoded leniently as one that can be written."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
