"""Segments to chunks, in order: each proven to end where the next begins, and joined to it.

Segments are read ahead, by guess. One that turns out not to end between two records is read again
in one piece with what follows it; so is one whose last conversation goes on in the next. Whatever
the guess was, what comes out is what one reader would give that reads straight through.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.prepare.encode.chunk_content import digests_of, unpacked
from pipeline.prepare.engines import tasks
from pipeline.prepare.engines.base import Engine
from pipeline.prepare.files.segments import Segment
from pipeline.prepare.read.joining import joins
from pipeline.store.chunk_cache import Chunk

Wait = Callable[[], Chunk | None]


@dataclass(frozen=True, slots=True)
class Done:
    """A segment with its chunk."""

    segment: Segment
    chunk: Chunk


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
        waiting = deque[tuple[Done, Wait]]()
        for done in self._joined():
            waiting.append((done, self._without_repeats(done)))
            while len(waiting) > self._engine.slots:
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())

    def _without_repeats(self, done: Done) -> Wait:
        """Start to take out of a chunk what repeats an earlier conversation."""
        if not self._dedup:
            return lambda: done.chunk
        repeats, seen, content = [], self._seen, done.chunk.content
        for i, (rows, digest) in enumerate(zip(content["rows"], digests_of(content), strict=True)):
            if rows >= 0 and digest in seen:
                repeats.append(i)
            seen.add(digest)
        if not repeats:
            return lambda: done.chunk
        return self._engine.submit(tasks.without, done.chunk, repeats)

    def _joined(self) -> Iterator[Done]:
        """Yield the segments that no conversation goes on from one to the next of."""
        held = list[Done]()  # one with an open end, and those after it without a conversation
        for done in self._clean():
            if held and done.chunk.content["digests"] and _goes_on(held[0], done):
                segment = held[0].segment
                for other in (*held[1:], done):
                    segment = segment.with_next(other.segment)
                done = self._read_again(segment)
                held = []
            if held and done.chunk.content["digests"]:
                yield from held
                held = []
            held.append(done)
            if held[0].chunk.content["last"] is None:
                yield from held
                held = []
        yield from held

    def _clean(self) -> Iterator[Done]:
        """Yield the segments that end between two records."""
        while (found := self._next()) is not None:
            segment, wait = found
            chunk = wait()
            yield Done(segment, chunk) if chunk is not None else self._read_again(segment)

    def _read_again(self, segment: Segment) -> Done:
        """Read a segment in one piece with as many of the next as it takes to be clean."""
        more = 0
        while (chunk := self._engine.submit(tasks.encode, segment)()) is None:
            more = max(2 * more, 1)
            for _ in range(more):
                following = self._next_of_file(segment)
                if following is None:
                    break
                segment = segment.with_next(following)
        return Done(segment, chunk)

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
            self._under_way.append((segment, self._engine.submit(tasks.encode, segment)))
        return self._under_way.popleft() if self._under_way else None


def _finish(done: Done, wait: Wait) -> Done:
    chunk = wait()
    assert chunk is not None, "it was read before"
    return Done(done.segment, chunk)


def _goes_on(held: Done, done: Done) -> bool:
    last, first = held.chunk.content["last"], done.chunk.content["first"]
    if last is None or first is None or held.segment.split != done.segment.split:
        return False
    return joins(unpacked(last), unpacked(first))
