"""A segment to its chunk: its rows by split, what was left out of it, and what is counted of both.

This is all that a worker does, whatever machine it is on: it finds where its segment begins and
ends, hashes it, and takes the chunk that is kept under that hash, or reads, joins and encodes.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.conversation import Conversation, split_part_id
from pipeline.prepare.encode.chunk_content import REPEAT, Edit, packed
from pipeline.prepare.encode.chunk_edits import edited
from pipeline.prepare.encode.chunk_rows import ChunkRows
from pipeline.prepare.encode.dataset_stats import pair_counts_as_json
from pipeline.prepare.encode.encoders import PairEncoder, make_pair_encoder
from pipeline.prepare.encode.settings import EncodingSettings
from pipeline.prepare.files.anchors import Anchor, find_anchors
from pipeline.prepare.files.json_values import Fault, Record
from pipeline.prepare.files.segments import Piece, PieceReader, Segment
from pipeline.prepare.files.streams import reading_at
from pipeline.prepare.files.tables import row_ranges
from pipeline.prepare.read.joining import join_parts
from pipeline.prepare.read.records import RecordCounts, parse_record
from pipeline.prepare.read.rejections import content_of, rejection_line
from pipeline.prepare.read.values import RejectedError
from pipeline.store.chunk_cache import Chunk, ChunkCache, ChunkWriter
from pipeline.store.fingerprint import accepted_frame, key_of, rejected_frame, turns_digest

# In characters. Conversations are encoded in groups: a segment may be one file of gigabytes.
_GROUP = 1 << 23


class SegmentEncoder:
    """Encodes segments in this process.

    Args:
        load: Returns the settings; called when the first segment comes.
        cache: Where chunks are kept.
    """

    def __init__(self, load: Callable[[], EncodingSettings], cache: ChunkCache) -> None:
        self._load, self.cache = load, cache

    def anchors(self, whole: Piece, start: int, end: int, usual: int) -> list[Anchor]:
        """Return the anchors in a stretch of a file."""
        with reading_at(whole.source.path) as read_at:
            if isinstance(whole.source.path, Path):
                return find_anchors(read_at, start, end, usual)
            return find_anchors(read_at, start, end, usual, at_once=end - start)

    def row_ranges(self, whole: Piece, usual: int) -> list[tuple[int, int]]:
        """Return the ranges of rows that a table is read in."""
        return row_ranges(whole.source.path, whole.kind, usual)

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the files of the tokenizer, to be kept beside the rows."""
        settings = self.settings
        return settings.tokenizer.saved_files(model_max_length=settings.model_max_length)

    def encode(self, segment: Segment, *, anew: bool = False) -> Chunk | None:
        """Return the chunk of a segment, which is pinned; None where the segment is not clean.

        Args:
            segment: The segment.
            anew: Make it, whatever is kept.

        Raises:
            InputError: A file cannot be read, or changed.
            OutputError: The chunk cannot be written.
        """
        if segment.known is not None and not anew and (kept := self.cache.take(segment.known)):
            return kept
        readers = [PieceReader(piece) for piece in segment.pieces]
        if not all(reader.find_bounds() for reader in readers):
            return None
        digests = [reader.digest() for reader in readers]
        key = key_of(self.settings.info.key, segment.split, digests)
        if not anew and (kept := self.cache.take(key)):
            return kept
        return self._make(segment, readers, digests, key)

    def edit(self, segment: Segment, chunk: Chunk, change: Edit) -> Chunk:
        """Return a pinned chunk as the segments around its own want it, whole and pinned, too.

        Args:
            segment: The segment.
            chunk: What it gives by itself.
            change: What is to be different.
        """
        split, start = segment.split, change.start and packed(change.start)
        key = key_of(chunk.key, split, start, change.drops_last, change.repeats)
        if change and (kept := self.cache.take(key)):
            if self.cache.is_whole(kept):
                return kept
            self.cache.unpin(kept)
        if not (chunk.is_checked or self.cache.is_whole(chunk)):
            self.cache.unpin(chunk)
            made = self.encode(segment, anew=True)
            assert made is not None, "it was clean before"
            chunk = made
        if not change:
            return chunk
        with self.cache.new() as writer:
            rows = ChunkRows(lambda: self.pair_encoder, self.settings, split, writer)
            return writer.publish(key, edited(chunk, change, self.cache, rows))

    def _make(
        self, segment: Segment, readers: list[PieceReader], digests: list[str], key: str
    ) -> Chunk | None:
        with self.cache.new() as writer:
            reading = _Reading(self.settings, readers, writer)
            rows = ChunkRows(lambda: self.pair_encoder, self.settings, segment.split, writer)
            for group in _groups(reading.kept()):
                rows.encode(group)
            if not all(reader.is_clean for reader in readers):
                return None
            for reader, digest in zip(readers, digests, strict=True):
                reader.check_unchanged(digest)
            if any(reader.depends_on_before for reader in readers):
                key = key_of(key, str(segment.pieces[0].source.path), segment.pieces[0].start)
            return writer.publish(key, reading.content(rows, digests))

    @functools.cached_property
    def settings(self) -> EncodingSettings:
        """The settings."""
        return self._load()

    @functools.cached_property
    def pair_encoder(self) -> PairEncoder:
        """What encodes conversations; made for the first that is to be encoded."""
        settings = self.settings
        return make_pair_encoder(
            settings.tokenizer,
            settings.model_max_length,
            settings.target_length,
            last_turn_only=settings.last_turn_only,
        )


class _Reading:
    """Reads the records of a segment's pieces as one stream, and counts what is in them."""

    def __init__(
        self, settings: EncodingSettings, readers: list[PieceReader], writer: ChunkWriter
    ) -> None:
        self._settings, self._readers, self._writer = settings, readers, writer
        self._frames = list[str]()
        self._pieces = list[dict[str, Any]]()
        self._digests, self._is_repeat = list[bytes](), list[bool]()
        self._first_record: Conversation | None = None
        self._first_two = list[Conversation]()
        self._last: Conversation | None = None
        self._records, self._reasons = RecordCounts(), Counter[str]()
        self._noted = RecordCounts()  # of one record; most have nothing to note

    def conversations(self) -> Iterator[Conversation]:
        """Yield the conversations, joined, repeats among them."""
        records = self._accepted()
        for found in join_parts(records) if self._settings.join_parts else records:
            if len(self._first_two) < 2:
                self._first_two.append(found)
            self._last = found
            yield found

    def kept(self) -> Iterator[Conversation]:
        """Yield the conversations but for those that repeat an earlier one of the segment."""
        seen = set[bytes]()
        for found in self.conversations():
            digest = turns_digest(found.turns, found.tools)
            self._digests.append(digest)
            self._is_repeat.append(self._settings.dedup and digest in seen)
            if self._is_repeat[-1]:
                self._reasons["duplicate"] += 1
                continue
            # One that may continue an earlier segment's is another conversation then: what
            # repeats it now is no repeat.
            if found.start == 0 or found is not self._first_two[0]:
                seen.add(digest)
            yield found

    def content(self, rows: ChunkRows, digests: list[str]) -> dict[str, Any]:
        """Return what is kept of it in the chunk."""
        stats = rows.stats
        stats.reasons.update(self._reasons)
        stats.records = self._records
        numbers = iter(rows.each)
        counts = [REPEAT if repeat else next(numbers).rows for repeat in self._is_repeat]
        kept = [i for i, repeat in enumerate(self._is_repeat) if not repeat]
        noted = map(pair_counts_as_json, rows.each)
        for piece, reader, digest in zip(self._pieces, self._readers, digests, strict=True):
            piece |= {"digest": digest, "brackets": reader.brackets, "resumed": reader.is_resumed}
        return {
            "pieces": self._pieces,
            "frames": "".join(self._frames),
            "digests": b"".join(self._digests).hex(),
            "rows": counts,
            "noted": [[i, n] for i, n in zip(kept, noted, strict=True) if n],
            "evaluated": [kept[i] for i in rows.evaluated],
            "stats": stats.as_json(),
        } | self._ends()

    def _ends(self) -> dict[str, Any]:
        """Return the first and last conversation, where they may reach over the segment's ends.

        Of the first, also how many turns its first record has, and whether what comes after it
        might be of the same conversation, once that one begins earlier.
        """
        record, last = self._first_record, self._last
        if not self._settings.join_parts or record is None or last is None:
            return {"first": None, "first_turns": 0, "second_may_join": False, "last": None}
        bases = [split_part_id(found.id)[0] for found in self._first_two]
        starts = [found.start for found in self._first_two]
        return {
            "first": packed(self._first_two[0]) if starts[0] > 0 else None,
            "first_turns": len(record.turns),
            "second_may_join": bases[1:] == bases[:1] and starts[-1] <= starts[0],
            "last": packed(last) if split_part_id(last.id)[1] is not None else None,
        }

    def _accepted(self) -> Iterator[Conversation]:
        for number, reader in enumerate(self._readers):
            piece: dict[str, Any] = {"records": 0, "rejected": 0, "forms": Counter[str]()}
            self._pieces.append(piece)
            for found in reader.values():
                piece["records"] += 1
                conversation = self._conversation(found, number, piece)
                if conversation is not None:
                    self._first_record = self._first_record or conversation
                    yield conversation

    def _conversation(
        self, found: Record | Fault, number: int, piece: dict[str, Any]
    ) -> Conversation | None:
        settings, noted = self._settings, self._noted
        try:
            if isinstance(found, Fault):
                raise RejectedError(found.reason, found.detail)
            conversation = parse_record(
                found.value, settings.roles, noted, clean_html=settings.clean_html
            )
        except RejectedError as error:
            piece["rejected"] += 1
            self._reasons[error.reason] += 1
            self._frames.append(rejected_frame(error.reason, content_of(found, error)))
            self._writer.reject(rejection_line(number, found, error))
            return None
        if noted:
            self._records.update(noted)
            piece["forms"].update(noted.forms)
            self._noted = RecordCounts()
        self._frames.append(accepted_frame(conversation))
        return conversation


def _groups(conversations: Iterator[Conversation]) -> Iterator[list[Conversation]]:
    group, size = list[Conversation](), 0
    for conversation in conversations:
        group.append(conversation)
        size += sum(len(turn.text) for turn in conversation.turns)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group
