"""What a file is, by its content and never by its suffix: records of some kind, or no data."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.console.logs import note
from pipeline.errors import InputError
from pipeline.prepare.files.sources import Source
from pipeline.prepare.files.streams import BrokenStreamError, is_packed, read_text
from pipeline.store.remote import AnyPath, open_binary

Kind = Literal["json", "packed json", "parquet", "arrow"]
"""How a file is read. ``packed json`` can only be read from its start: it is compressed, or in
UTF-16 or UTF-32."""

_FIRST, _SNIFF = 1 << 12, 1 << 16
_PLAIN_JSON = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n,]*(?:\{[^\x00]|\[[^\]\"{\x00]*[\"{])")
"""What most files begin with: no more need be read of them. No ``]`` comes before the first quote
or brace, so it is no link of Markdown, and no NUL, so it is not UTF-16."""
_ARROW_STREAM = re.compile(rb"\xff{4}[\x08-\xff][\x00-\xff]{2}\x00", re.DOTALL)
_LINE_OF_A_VALUE = re.compile(rb"(?m)^[{\[]")
_MARKDOWN = re.compile(rb"\[!?\[?[^\]\"{]*\]\(")
"""A link or a badge, with which many a README begins: no JSON has ``](``."""
_WITHOUT_MARK = re.compile(rb"[\[{]\x00|\x00{1,3}[\[{]")
_HTML = re.compile(rb"<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NoData:
    """A file that holds no records: what it is, and what to do about it."""

    what: str
    do: str


_BINARIES = {
    b"PK\x03\x04": NoData("a zip archive", "unpack it, and give the files in it"),
    b"%PDF": NoData("a PDF", "give the export as JSON, JSON Lines or Parquet"),
    b"SQLite format 3": NoData("an SQLite database", "export the conversations as JSON"),
    b"7z\xbc\xaf\x27\x1c": NoData("a 7z archive", "unpack it, and give the files in it"),
    b"Rar!": NoData("a RAR archive", "unpack it, and give the files in it"),
    b"\x93NUMPY": NoData("a NumPy array", "give the export as JSON, JSON Lines or Parquet"),
}
_TAR = NoData("a tar archive", "unpack it, and give the files in it")
_EMPTY = NoData("an empty file", "give the whole export; a download may have failed")
_BROKEN = NoData(
    "a compressed file that is cut off or damaged",
    "get the whole file again; a download may have failed",
)
_WIDE = NoData("UTF-16 or UTF-32 without a byte-order mark", "save the file as UTF-8")
_LFS = NoData(
    "a git-lfs pointer, not the file itself", "run git lfs pull where it lies, then start again"
)
_PAGE = NoData(
    "an HTML or XML page", "download the data file itself; this may be its page, or a log-in"
)
_CSV = NoData("a table of text (CSV or TSV)", "convert it to JSON Lines or Parquet first")
_TEXT = NoData("text that is not JSON", "give ShareGPT records as JSON, JSON Lines or Parquet")
_BINARY = NoData(
    "a binary file of no known kind", "give ShareGPT records as JSON, JSON Lines or Parquet"
)

NO_DATA = (*_BINARIES.values(), _TAR, _EMPTY, _BROKEN, _WIDE, _LFS, _PAGE, _CSV, _TEXT, _BINARY)
"""Everything that a file without records may be."""

NO_RECORDS = NoData("no records in it", "give ShareGPT records as JSON, JSON Lines or Parquet")
"""A file that an earlier run skipped; what it is was not kept."""


def recognize(
    sources: Sequence[Source], known: Sequence[Kind | NoData | None]
) -> list[Kind | None]:
    """Return how each file is read; None for those of folders and globs that are no data.

    Args:
        sources: The files.
        known: What earlier runs found them to be; such a file is not opened.

    Raises:
        InputError: A file that was named is no data, or a folder holds none.
    """
    kinds = list[Kind | None]()
    for source, before in zip(sources, known, strict=True):
        found = before or kind_of(source.path, is_named=source.is_named)
        if isinstance(found, str):
            kinds.append(found)
            continue
        if source.is_named:
            raise InputError(
                "not a file of records", where=source.path, got=found.what, do=found.do
            )
        note(f"skipped, {found.what}: {source.name}")
        kinds.append(None)
    _check_each_gives_one(sources, kinds)
    return kinds


def kind_of(path: AnyPath, *, is_named: bool) -> Kind | NoData:
    """Return how a file is read, or why it is none to read.

    Args:
        path: The file.
        is_named: A user named it, so text that only later looks like JSON is broken JSON.

    Raises:
        InputError: It cannot be opened.
    """
    with open_binary(path) as file:
        head = file.read(_FIRST)
        if _PLAIN_JSON.match(head):
            return "json"
        head += file.read(_SNIFF - len(head))
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1") or _ARROW_STREAM.match(head):
        return "arrow"
    packed = is_packed(head)
    text, is_broken = (
        _unpacked_head(path) if packed else (head.removeprefix(b"\xef\xbb\xbf"), False)
    )
    if is_broken and not text.strip():
        return _BROKEN
    if _WITHOUT_MARK.match(text):
        return _WIDE
    stripped = text.lstrip(b" \t\r\n,")
    if stripped[:1] in (b"[", b"{") and not _MARKDOWN.match(stripped):
        return "packed json" if packed else "json"
    found = _no_data(text, stripped)
    if is_named and found is _TEXT and _LINE_OF_A_VALUE.search(text):
        return "packed json" if packed else "json"
    return found


def _unpacked_head(path: AnyPath) -> tuple[bytes, bool]:
    """Return the first bytes of the text, unpacked, and whether that is all of it."""
    head = b""
    try:
        for chunk in read_text(path):
            head += chunk
            if head.strip() or len(head) >= _SNIFF:
                break
    except BrokenStreamError:
        return head[:_SNIFF], True
    return head[:_SNIFF], False


def _no_data(text: bytes, stripped: bytes) -> NoData:
    for magic, found in _BINARIES.items():
        if text.startswith(magic):
            return found
    if text[257:262] == b"ustar":
        return _TAR
    if not stripped.strip(b"\x00"):
        return _EMPTY
    if b"\x00" in text:
        return _BINARY
    if text.startswith(b"version https://git-lfs"):
        return _LFS
    if _HTML.match(stripped):
        return _PAGE
    first, _, second = stripped.partition(b"\n")
    for mark in (b",", b"\t", b";"):
        if mark in first and mark in second.partition(b"\n")[0]:
            return _CSV
    return _TEXT


def _check_each_gives_one(sources: Sequence[Source], kinds: Sequence[Kind | None]) -> None:
    counts = Counter[str]()
    for source, kind in zip(sources, kinds, strict=True):
        counts[source.given] += kind is not None
    for given, count in counts.items():
        if not count:
            others = sum(source.given == given for source in sources)
            raise InputError(
                "no file of records",
                where=given,
                got=f"{others} other file{'s' if others > 1 else ''}",
                do="give the folder that holds the export: JSON, JSON Lines, Parquet or Arrow",
            )
