"""A text that slides over chunks of bytes, so that memory stays flat whatever a file's size."""

import codecs
import re
from collections.abc import Callable, Iterator

from pipeline.prepare.files.streams import BrokenStreamError

SEPARATORS = re.compile(r"[ \t\n\r,\ufeff]*")
"""What may stand between values; files put together have a byte-order mark where each began."""
INDENT = re.compile(r"[ \t]*")


class TextWindow:
    """Decoded text that slides over chunks of bytes: it grows on demand and is cut at ``at``.

    Bytes that are no UTF-8 are decoded to lone surrogates, as ``surrogateescape`` has them.
    """

    def __init__(
        self, chunks: Iterator[bytes], indent_before: Callable[[], int], error: str | None
    ) -> None:
        self.text, self.at, self.ended = "", 0, False
        self.has_escapes = False
        self.error = error
        """Why the chunks end, if they should not."""
        self._chunks = chunks
        self._strict = codecs.getincrementaldecoder("utf-8")()
        self._indent_before: Callable[[], int] = indent_before

    def grow(self) -> None:
        """Drop what was read, and take in at least as much as is left, so that growing is cheap."""
        newline = self.text.rfind("\n", 0, self.at)
        keep_from = self.at
        if newline >= 0:
            match = INDENT.match(self.text, newline + 1)
            end = match.end() if match else self.at
            if end >= self.at:  # only its indent is known, which may be longer
                keep_from = newline
            else:
                indent = end - newline - 1
                self._indent_before = lambda: indent
        self.text, self.at = self.text[keep_from:], self.at - keep_from
        parts, size, goal = [self.text], 0, len(self.text)
        while not self.ended and (size == 0 or size < goal):
            part = self._next()
            parts.append(part)
            size += len(part)
        self.text = "".join(parts)

    def indent(self) -> int:
        """Return the indent of the line that ``at`` stands in."""
        newline = self.text.rfind("\n", 0, self.at)
        if newline < 0:
            return self._indent_before()
        match = INDENT.match(self.text, newline + 1)
        return match.end() - newline - 1 if match else 0

    def skip_separators(self) -> str:
        """Move to the next character that is no separator and return it; empty at the end."""
        while True:
            match = SEPARATORS.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.grow()

    def _next(self) -> str:
        try:
            chunk = next(self._chunks, b"")
        except BrokenStreamError as error:
            chunk, self.error = b"", str(error)
        self.ended = not chunk
        try:
            return self._strict.decode(chunk, self.ended)
        except UnicodeDecodeError:
            self.has_escapes = True
            lenient = codecs.getincrementaldecoder("utf-8")("surrogateescape")
            text = lenient.decode(self._strict.getstate()[0] + chunk, self.ended)
            self._strict.setstate((lenient.getstate()[0], 0))
            return text
