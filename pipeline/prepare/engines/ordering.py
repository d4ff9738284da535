"""Segments to chunks, in order: each proven to end where the next begins, and joined to it.

Segments are read ahead, by guess. One that turns out not to end between two records is read again
in one piece with what follows it. Where a conversation goes on in the next segment, its rows go
there, and where one repeats an earlier one, it is left out; the rest of the chunk stays. Whatever
the guess was, what comes out is what one reader would give that reads straight through.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from pipeline.conversation import Conversation
from pipeline.prepare.encode.chunk_content import Edit, unpacked
from pipeline.prepare.engines.base import Engine
from pipeline.prepare.files.segments import Segment
from pipeline.prepare.read.joining import join, joins
from pipeline.store.chunk_cache import Chunk

Wait = Callable[[], Chunk | None]


@dataclass(frozen=True, slots=True)
class Done:
    """A segment with its chunk."""

    segment: Segment
    read: Chunk
    """What the segment gives by itself."""
    chunk: Chunk
    """What it gives among the others."""


@dataclass
class _Read:
    """A segment that was read, and what the others change of it."""

    segment: Segment
    chunk: Chunk
    edit: Edit = field(default_factory=Edit)

    @property
    def has_conversation(self) -> bool:
        return bool(self.chunk.content["digests"])

    @property
    def first_turns(self) -> int:
        """How many turns the first record has."""
        turns: int = self.chunk.content["first_turns"]
        return turns

    @functools.cached_property
    def first(self) -> Conversation | None:
        """The first conversation, where it may continue an earlier segment's."""
        found = self.chunk.content["first"]
        return found and unpacked(found)

    @property
    def last(self) -> Conversation | None:
        """The last one, where it may go on in a later segment."""
        if self.edit.start is not None and len(self.chunk.content["rows"]) == 1:
            return self.edit.start
        return self._last

    @functools.cached_property
    def _last(self) -> Conversation | None:
        found = self.chunk.content["last"]
        return found and unpacked(found)


class OrderedChunks:
    """Encodes segments and gives their chunks in order.

    Args:
        engine: Does the work.
        segments: In order; planned as they are needed.
        dedup: Leave out conversations that repeat earlier ones.
    """

    def __init__(self, engine: Engine, segments: Iterator[Segment], *, dedup: bool) -> None:
        self._engine, self._segments, self._dedup = engine, segments, dedup
        self._under_way = deque[tuple[Segment, Wait]]()
        self._seen = set[bytes]()

    def __iter__(self) -> Iterator[Done]:
        waiting = deque[tuple[_Read, Wait]]()
        for read in self._joined():
            waiting.append((read, self._edited(read)))
            while len(waiting) > self._engine.slots:
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())

    def _edited(self, read: _Read) -> Wait:
        """Start to change what the segments around one change of its chunk."""
        if self._dedup:
            read.edit.repeats = tuple(self._repeats(read))
        if not read.edit and read.chunk.is_checked:
            return lambda: read.chunk
        # What its neighbours asked about may be long, and need not be sent.
        content = read.chunk.content | {"first": None, "last": None}
        return self._engine.submit(
            "edit", read.segment, replace(read.chunk, content=content), read.edit
        )

    def _repeats(self, read: _Read) -> Iterator[int]:
        """Yield the conversations that repeat an earlier one."""
        content, seen = read.chunk.content, self._seen
        for i, digest in enumerate(read.edit.digests(content)):
            if content["rows"][i] >= 0 and digest in seen:
                yield i
            seen.add(digest)

    def _joined(self) -> Iterator[_Read]:
        """Yield the segments, each with what goes on over its ends."""
        held = list[_Read]()  # a conversation goes on through all of them
        for read in self._clean():
            before = next((other for other in reversed(held) if other.has_conversation), None)
            if before is not None and read.has_conversation:
                if not _goes_on(before, read):
                    yield from held
                    held = []
                elif not _link(before, read):
                    segments = (other.segment for other in (*held, read))
                    read = self._read_again(functools.reduce(Segment.with_next, segments))
                    held = []
            held.append(read)
            last = read if read.has_conversation else before
            if last is None or last.last is None:
                yield from held
                held = []
        yield from held

    def _clean(self) -> Iterator[_Read]:
        """Yield the segments that end between two records."""
        while (found := self._next()) is not None:
            segment, wait = found
            chunk = wait()
            yield _Read(segment, chunk) if chunk is not None else self._read_again(segment)

    def _read_again(self, segment: Segment) -> _Read:
        """Read a segment in one piece with as many of the next as it takes to be clean."""
        more = 0
        while (chunk := self._engine.submit("encode", segment)()) is None:
            more = max(2 * more, 1)
            for _ in range(more):
                following = self._next_of_file(segment)
                if following is None:
                    break
                segment = segment.with_next(following)
        return _Read(segment, chunk)

    def _next_of_file(self, segment: Segment) -> Segment | None:
        if segment.pieces[-1].ends_file:
            return None
        found = self._next()
        assert found is not None, "a file has a last piece"
        return found[0]

    def _next(self) -> tuple[Segment, Wait] | None:
        """Return the next segment, which is under way; keep so many under way."""
        while len(self._under_way) <= self._engine.slots:
            segment = next(self._segments, None)
            if segment is None:
                break
            self._under_way.append((segment, self._engine.submit("encode", segment)))
        return self._under_way.popleft() if self._under_way else None


def _finish(read: _Read, wait: Wait) -> Done:
    chunk = wait()
    assert chunk is not None, "it was read before"
    return Done(read.segment, read.chunk, chunk)


def _goes_on(before: _Read, after: _Read) -> bool:
    """Return whether the last conversation of a segment goes on in a later one."""
    last, first = before.last, after.first
    if last is None or first is None or before.segment.split != after.segment.split:
        return False
    record = replace(first, turns=first.turns[: after.first_turns])
    return joins(last, record)


def _link(before: _Read, after: _Read) -> bool:
    """Move a conversation that goes on over a cut to the segment that it ends in.

    Returns:
        False where the later segment must be read again, as its next records may be joined in
        another way: they were compared with less than the whole conversation.
    """
    start, first = before.last, after.first
    assert start is not None and first is not None, "it goes on"
    ends_later = start.start + len(start.turns) > first.start + after.first_turns
    if ends_later or after.chunk.content["second_may_join"]:
        return False
    join(start, first)
    before.edit.drops_last, after.edit.start = True, start
    return True
