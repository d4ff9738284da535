"""Files to segments: a large file is cut, small ones are put together.

The files come in groups: a large file is one, and so are small ones in a row that become one
segment. Where a group's files are those of an earlier run, by name, size, times and number on the
disk, its segments and their chunks are known, and none of its files is opened.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pipeline.prepare.files import anchors as anchors_module
from pipeline.prepare.files.anchors import (
    Anchor,
    ReadAt,
    choose_anchors,
    find_anchors,
    record_after,
)
from pipeline.prepare.files.file_kind import Kind
from pipeline.prepare.files.segments import ALL_ROWS, Piece, Segment, indent_at
from pipeline.prepare.files.sources import Source
from pipeline.prepare.files.streams import BrokenStreamError, read_text

# In bytes: what one task looks for anchors in, and what is unpacked at a time.
_BLOCK = 1 << 24
_LOOKAHEAD = 1 << 21
_AHEAD = 4  # blocks that are looked through before they are needed

FindAnchors = Callable[[Piece, int, int, int], Callable[[], list[Anchor]]]
"""Starts to look for the anchors of a stretch of a file, of segments of a usual size; returns a
function that waits for them."""
FindRows = Callable[[Piece, int], Callable[[], list[tuple[int, int]]]]
"""The same for the ranges of a table's rows."""


@dataclass(slots=True)
class Group:
    """Files that are planned together, by their index among a run's."""

    files: list[int]
    known: list[Segment] | None = None
    """Its segments, with the keys of their chunks, where an earlier run read the same files."""
    segments: list[tuple[Segment, str]] = field(default_factory=list)
    """What this run made of it, once that is known, and the keys of the chunks."""


def group_files(sources: Sequence[Source]) -> list[Group]:
    """Put files into groups, each by itself or with its neighbours.

    Where a group of small files ends, the name and the size of its last file decide: so a new file
    changes the group that it is in, and no other.
    """
    groups, held, usual = list[Group](), 0, anchors_module.USUAL
    is_open = False
    for i, source in enumerate(sources):
        size = source.state[0]
        is_small = size < usual
        fits = is_open and is_small and held + size < 2 * usual
        if fits and sources[i - 1].split == source.split:
            groups[-1].files.append(i)
        else:
            groups.append(Group([i]))
            held = 0
        held += size
        is_open = is_small and not _ends_group(source)
    return groups


def _ends_group(source: Source) -> bool:
    size = source.state[0]
    digest = hashlib.sha256(f"{source.path.name} {size}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") * anchors_module.USUAL < size << 64


class Planner:
    """Plans the segments of some files.

    Args:
        sources: The files.
        kinds: How each is read; None: it is skipped.
        find_anchors: Starts to look for the places where JSON may be cut.
        find_rows: The same of tables.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        kinds: Sequence[Kind | None],
        find_anchors: FindAnchors,
        find_rows: FindRows,
    ) -> None:
        self._sources, self._kinds = sources, kinds
        self._find_anchors, self._find_rows = find_anchors, find_rows

    def segments(self, groups: Sequence[Group]) -> Iterator[Segment]:
        """Yield the segments of groups of files, in order; look for the first at once."""
        segments = self._segments(groups)
        first = list(itertools.islice(segments, 1))
        return itertools.chain(first, segments)

    def _segments(self, groups: Sequence[Group]) -> Iterator[Segment]:
        for group in groups:
            if group.known is not None:
                yield from group.known
                continue
            pieces = [self._whole(i) for i in group.files if self._kinds[i] is not None]
            if len(pieces) == 1 and pieces[0].size >= anchors_module.USUAL:
                yield from (Segment((piece,)) for piece in self._cut(pieces[0]))
            elif pieces:
                yield Segment(tuple(pieces))

    def _whole(self, file: int) -> Piece:
        source, kind = self._sources[file], self._kinds[file]
        assert kind is not None, "it is skipped"
        size = source.state[0]
        return Piece(file, source, kind, end=size if kind == "json" else ALL_ROWS, size=size)

    def _cut(self, whole: Piece) -> Iterator[Piece]:
        if whole.kind == "json":
            yield from self._cut_json(whole)
        elif whole.kind == "packed json":
            yield from _cut_packed(whole)
        else:
            ranges = self._find_rows(whole, anchors_module.USUAL)()
            rows = max(ranges[-1][1], 1)
            for start, end in ranges:
                is_last = end == ranges[-1][1]
                size = whole.size * (end - start) // rows
                stop = ALL_ROWS if len(ranges) == 1 else end
                yield replace(whole, start=start, end=stop, ends_file=is_last, size=size)

    def _cut_json(self, whole: Piece) -> Iterator[Piece]:
        last = 0
        for place in choose_anchors(self._anchors(whole)):
            if whole.end - place < anchors_module.MIN:
                break
            yield replace(
                whole,
                start=last,
                end=place,
                starts_at_anchor=last > 0,
                ends_file=False,
                size=place - last,
            )
            last = place
        yield replace(whole, start=last, starts_at_anchor=last > 0, size=whole.end - last)

    def _anchors(self, whole: Piece) -> Iterator[Anchor]:
        """Yield the anchors of a file; blocks are looked through ahead."""
        under_way = deque[Callable[[], list[Anchor]]]()
        for start in range(0, whole.end, _BLOCK):
            end = min(start + _BLOCK, whole.end)
            under_way.append(self._find_anchors(whole, start, end, anchors_module.USUAL))
            if len(under_way) > _AHEAD:
                yield from under_way.popleft()()
        while under_way:
            yield from under_way.popleft()()


def _cut_packed(whole: Piece) -> Iterator[Piece]:
    """Yield the pieces of a packed file, each with its text, which is unpacked here."""
    text, indent, is_first, ended = b"", 0, True, False
    error: str | None = None
    chunks = read_text(whole.source.path)
    while not ended:
        parts = [text]
        size = len(text)
        # A stretch without a place to cut at is searched again with as much text after it.
        goal = max(_BLOCK + _LOOKAHEAD, 2 * size)
        try:
            while size < goal and (chunk := next(chunks, b"")):
                parts.append(chunk)
                size += len(chunk)
            ended = size < goal
        except BrokenStreamError as broken:
            error, ended = str(broken), True
        text = b"".join(parts)
        limit = len(text) if ended else len(text) - _LOOKAHEAD
        last = 0
        for place in _record_starts(_reader(text), limit, len(text) if ended else None):
            yield replace(
                whole,
                start=0 if is_first else 1,
                ends_file=False,
                size=0,
                content=text[last:place],
                indent=indent,
            )
            indent = indent_at(_reader(text), place, indent)
            last, is_first = place, False
        text = text[last:]
    yield replace(whole, start=0 if is_first else 1, content=text, error=error, indent=indent)


def _record_starts(read_at: ReadAt, limit: int, end: int | None) -> Iterator[int]:
    """Yield where segments start, before ``limit``; ``end``: of the file, where it is known."""
    last = 0
    for place in choose_anchors(find_anchors(read_at, 0, limit, anchors_module.USUAL)):
        if end is not None and end - place < anchors_module.MIN:
            break
        start = record_after(read_at, place)
        if start is not None and start > last and start < limit:
            yield start
            last = start


def _reader(text: bytes) -> ReadAt:
    return lambda start, size: text[start : start + size]
