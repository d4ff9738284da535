"""Notes what reading gives for each part, and keeps it as a passage for later runs."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.conversation import Place
from pipeline.errors import DuetError
from pipeline.logs import note
from pipeline.prepare.cutting import Part, conversation_size, mark_reach
from pipeline.prepare.read.formats import Content, format_of, open_file
from pipeline.prepare.read.sources import FileState, Source
from pipeline.store.passages import Passage, PassageStore, Rejection

# In characters, of records that are in no part yet: a large file may be rejected as a whole.
_MOST_NOTED = 1 << 24
_OBJECT_SIZE = 400  # of a record that is noted, beside its text


@dataclass(frozen=True, slots=True)
class _Record:
    place: Place
    frame: str
    rejection: Rejection | None

    @property
    def size(self) -> int:
        return _OBJECT_SIZE + len(self.frame) + (len(self.rejection.body) if self.rejection else 0)


@dataclass(frozen=True, slots=True)
class _Conversation:
    place: Place
    id: str
    digest: bytes
    is_kept: bool


@dataclass(frozen=True, slots=True)
class _Part:
    key: str
    start: Place
    first_size: int
    size: int
    ends_itself: bool


_Noted = TypeVar("_Noted", _Record, _Conversation)


class PassageLog:
    """Takes note of records and conversations in their order, and of the parts they become.

    Args:
        store: Where passages are kept.
        sources: The files, as places number them.
        states: What they were like before they were read.
    """

    def __init__(
        self, store: PassageStore, sources: Sequence[Source], states: Sequence[FileState]
    ) -> None:
        """Start with nothing."""
        self._store, self._sources, self._states = store, sources, states
        self._records, self._conversations = deque[_Record](), deque[_Conversation]()
        self._size = 0
        self._part: _Part | None = None
        self._is_broken = False

    def record(self, place: Place | None, frame: str, rejection: Rejection | None = None) -> None:
        """Take note of a record, by what the fingerprint takes of it.

        One without a place leaves a gap, and no passage has one.
        """
        if place is None or self._size > _MOST_NOTED:
            self._records.clear()
            self._conversations.clear()
            self._size = 0
        if place is not None:
            record = _Record(place, frame, rejection)
            self._size += record.size
            self._records.append(record)

    def conversation(self, place: Place | None, name: str, digest: bytes, *, is_kept: bool) -> None:
        """Take note of a conversation that the records were joined to."""
        if place is not None:
            self._conversations.append(_Conversation(place, name, digest, is_kept))

    def part(self, part: Part, key: str) -> None:
        """Take note of a part, which ends the one before it."""
        first = part.conversations[0]
        self.known(first.place)
        if first.place is not None:
            size = conversation_size(first)
            self._part = _Part(key, first.place, size, part.size, part.ends_itself)

    def known(self, place: Place | None) -> None:
        """Take note of where a passage begins that was known before: the part before it ends."""
        if self._part is not None and place is not None and place.file == self._part.start.file:
            self._keep(self._part, place)
        self._part = None

    def _keep(self, part: _Part, end: Place) -> None:
        """Keep the passage of a part, which goes up to a place, if all of it was noted."""
        _before(self._records, part.start)
        _before(self._conversations, part.start)
        records, conversations = _before(self._records, end), _before(self._conversations, end)
        self._size = sum(record.size for record in self._records)
        if self._is_broken or not records or records[0].place != part.start:
            return
        try:
            self._write(part, end, records, conversations)
        except (DuetError, OSError) as error:
            self._is_broken = True
            note(f"the next run will read more than it needs to: {error}")

    def _write(
        self, part: _Part, end: Place, records: list[_Record], conversations: list[_Conversation]
    ) -> None:
        source, start = self._sources[end.file], part.start.offset
        size = end.offset - start
        with open_file(source.path) as file:
            content, kind = Content(file), format_of(source.path)
            mark, behind = (content.mark(place.offset, mark_reach()) for place in (part.start, end))
            sha256 = content.sha256(start, size)
        if source.state() != self._states[end.file]:
            return  # these bytes may not be what was read
        passage = Passage(
            size=size,
            sha256=sha256,
            part=part.key,
            part_size=part.size,
            ends_part=part.ends_itself,
            mark_behind=behind.hex(),
            first_size=part.first_size,
            first_id=conversations[0].id,
            last_id=conversations[-1].id,
            records=len(records),
            frames="".join(record.frame for record in records),
            conversations=[(c.digest.hex(), c.is_kept) for c in conversations],
            rejections=[
                replace(record.rejection, position=i)
                for i, record in enumerate(records)
                if record.rejection is not None
            ],
        )
        self._store.write(kind, mark, passage)


def _before(noted: deque[_Noted], place: Place) -> list[_Noted]:
    """Take what stands before a place."""
    taken = []
    while noted and noted[0].place < place:
        taken.append(noted.popleft())
    return taken
