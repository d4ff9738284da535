"""A segment to its chunk: its rows by split, what was left out of it, and what is counted of both.

This is all that a worker does, whatever machine it is on: it finds where its segment begins and
ends, hashes it, and takes the chunk that is kept under that hash, or reads, joins and encodes.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.conversation import Conversation, split_key, split_part_id
from pipeline.prepare.encode.chunk_content import EVAL, REPEAT, TRAIN, packed
from pipeline.prepare.encode.dataset_stats import DatasetStats, pair_counts_as_json
from pipeline.prepare.encode.encoding import PairEncoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.files.anchors import Anchor, find_anchors
from pipeline.prepare.files.json_values import Fault, Record
from pipeline.prepare.files.segments import Piece, PieceReader, Segment, reading_at
from pipeline.prepare.options import EncodingSettings
from pipeline.prepare.read.joining import join_parts
from pipeline.prepare.read.records import RecordCounts, parse_record
from pipeline.prepare.read.rejections import content_of, rejection_line
from pipeline.prepare.read.values import RejectedError
from pipeline.store.chunk_cache import REJECTED, Chunk, ChunkCache, ChunkWriter
from pipeline.store.fingerprint import accepted_frame, key_of, rejected_frame, turns_digest
from pipeline.store.shards import row_schema

# In characters. Conversations are encoded in groups: a segment may be one file of gigabytes.
_GROUP = 1 << 23


class SegmentEncoder:
    """Encodes segments in this process.

    Args:
        settings: The settings.
        cache: Where chunks are kept.
    """

    def __init__(self, settings: EncodingSettings, cache: ChunkCache) -> None:
        self._settings, self.cache = settings, cache

    def anchors(self, whole: Piece, start: int, end: int, usual: int) -> list[Anchor]:
        """Return the anchors in a stretch of a file."""
        with reading_at(whole.source.path) as read_at:
            return find_anchors(read_at, start, end, usual)

    def encode(self, segment: Segment) -> Chunk | None:
        """Return the chunk of a segment, which is pinned; None where the segment is not clean.

        Raises:
            InputError: A file cannot be read, or changed.
            OutputError: The chunk cannot be written.
        """
        if segment.known is not None and (chunk := self.cache.take(segment.known)):
            return chunk
        readers = [PieceReader(piece) for piece in segment.pieces]
        if not all(reader.find_bounds() for reader in readers):
            return None
        digests = [reader.digest() for reader in readers]
        key = key_of(self._settings.key, segment.split, digests)
        return self.cache.take(key) or self._make(segment, readers, digests, key)

    def without(self, chunk: Chunk, repeats: Sequence[int]) -> Chunk:
        """Return a pinned chunk without some of its conversations, which repeat earlier ones.

        Args:
            chunk: All of it.
            repeats: Which conversations, counted from 0.
        """
        key = key_of(chunk.key, list(repeats))
        return self.cache.take(key) or self._make_without(chunk, set(repeats), key)

    def _make(
        self, segment: Segment, readers: list[PieceReader], digests: list[str], key: str
    ) -> Chunk | None:
        with self.cache.new(self.schema) as writer:
            reading = _Reading(self._settings, readers, writer)
            rows = _Rows(self, segment.split, writer)
            for group in _groups(reading.kept()):
                rows.encode(group)
            if not all(reader.is_clean for reader in readers):
                return None
            for reader, digest in zip(readers, digests, strict=True):
                reader.check_unchanged(digest)
            if any(reader.depends_on_before for reader in readers):
                key = key_of(key, str(segment.pieces[0].source.path), segment.pieces[0].start)
            return writer.publish(key, reading.content(rows, digests))

    def _make_without(self, chunk: Chunk, gone: set[int], key: str) -> Chunk:
        content, stats = chunk.content, DatasetStats.of_json(chunk.content["stats"])
        evaluated = set(content["evaluated"])
        unk_id = self._settings.tokenizer.unk_id
        with self.cache.new(self.schema) as writer:
            for split in (TRAIN, EVAL):
                chosen = [
                    (rows, i in gone)
                    for i, rows in enumerate(content["rows"])
                    if rows > 0 and (i in evaluated) == (split == EVAL)
                ]
                path = self.cache.pinned(chunk.key, f"{split}.arrow")
                for batch, is_gone in _runs(path, chosen) if chosen else ():
                    if is_gone:
                        stats.add_rows(batch, unk_id, sign=-1)
                    else:
                        writer.write(split, batch)
            if REJECTED in chunk.files:
                writer.keep(self.cache.pinned(chunk.key, REJECTED), chunk.files[REJECTED])
            noted = dict(content["noted"])
            for i in gone:
                stats.subtract_pairs(noted.get(i, {}))
            stats.reasons["duplicate"] += len(gone)
            rows = [REPEAT if i in gone else n for i, n in enumerate(content["rows"])]
            return writer.publish(key, content | {"rows": rows, "stats": stats.as_json()})

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        return row_schema(self._settings.tokenizer.vocab_size)

    @property
    def settings(self) -> EncodingSettings:
        """The settings."""
        return self._settings

    @functools.cached_property
    def pair_encoder(self) -> PairEncoder:
        """What encodes conversations; made with the first segment that is not kept."""
        settings = self._settings
        return PairEncoder(
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
        self._first: Conversation | None = None
        self._last: Conversation | None = None
        self._records, self._reasons = RecordCounts(), Counter[str]()
        self._noted = RecordCounts()  # of one record; most have nothing to note

    def conversations(self) -> Iterator[Conversation]:
        """Yield the conversations, joined, repeats among them."""
        records = self._accepted()
        for found in join_parts(records) if self._settings.join_parts else records:
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
            else:
                seen.add(digest)
                yield found

    def content(self, rows: "_Rows", digests: list[str]) -> dict[str, Any]:
        """Return what is kept of it in the chunk."""
        stats, first, last = rows.stats, self._first, self._last
        may_join = self._settings.join_parts
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
            "first": packed(first) if may_join and first and first.start > 0 else None,
            "last": packed(last) if may_join and last and _is_part(last) else None,
            "stats": stats.as_json(),
        }

    def _accepted(self) -> Iterator[Conversation]:
        for number, reader in enumerate(self._readers):
            piece: dict[str, Any] = {"records": 0, "rejected": 0, "forms": Counter[str]()}
            self._pieces.append(piece)
            for found in reader.values():
                piece["records"] += 1
                conversation = self._conversation(found, number, piece)
                if conversation is not None:
                    self._first = self._first or conversation
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


def _is_part(found: Conversation) -> bool:
    return split_part_id(found.id)[1] is not None


class _Rows:
    """Encodes groups of conversations into a chunk."""

    def __init__(self, encoder: SegmentEncoder, split: str | None, writer: ChunkWriter) -> None:
        self._pairs, self._settings = encoder.pair_encoder, encoder.settings
        self._split, self._writer = split, writer
        self.stats, self.evaluated = DatasetStats(), list[int]()
        self.each = list[PairCounts]()

    def encode(self, group: Sequence[Conversation]) -> None:
        first = len(self.each)
        each: list[Any] = [None] * len(group)
        evaluated = [self._is_eval(c.id) for c in group]
        for split in (TRAIN, EVAL):
            chosen = [i for i, is_of_eval in enumerate(evaluated) if is_of_eval == (split == EVAL)]
            if not chosen:
                continue
            counts = PairCounts()
            for batch in self._pairs.encode([group[i] for i in chosen], counts):
                self._writer.write(split, batch)
                self.stats.add_rows(batch, self._settings.tokenizer.unk_id)
            self.stats.add_pairs(counts)
            for i, own in zip(chosen, counts.each, strict=True):
                each[i] = own
        self.each += each
        self.evaluated += [first + i for i, is_of_eval in enumerate(evaluated) if is_of_eval]

    def _is_eval(self, conversation_id: str) -> bool:
        if self._split is not None:
            return self._split == EVAL
        return is_eval(conversation_id, self._settings.eval_fraction)


def is_eval(conversation_id: str, fraction: float) -> bool:
    """Return whether a conversation belongs to the eval split: by a hash of its base or id."""
    if not fraction:
        return False
    digest = hashlib.sha256(split_key(conversation_id).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _runs(
    path: Path, conversations: Sequence[tuple[int, bool]]
) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """Yield the rows of a shard in runs of those that go and those that stay.

    Args:
        path: The shard.
        conversations: How many rows each has, and whether they go.
    """
    ends = np.cumsum([rows for rows, _ in conversations]).tolist()
    runs = [
        (end, is_gone)
        for (end, (_, is_gone)), following in zip_longest(
            zip(ends, conversations, strict=True), conversations[1:]
        )
        if following is None or following[1] != is_gone
    ]
    at = number = 0
    with pa.memory_map(str(path)) as file:
        for batch in pa.ipc.open_stream(file):
            start = 0
            while start < batch.num_rows:
                end, is_gone = runs[number]
                size = min(end - at, batch.num_rows - start)
                yield batch.slice(start, size), is_gone
                at, start = at + size, start + size
                number += at == end


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
