"""What was read, put together: chunks come in order, and what is counted of all of them adds up."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.prepare.encode.dataset_stats import DatasetStats
from pipeline.prepare.engines.ordering import Done
from pipeline.prepare.files.json_values import end_fault
from pipeline.prepare.files.sources import Source
from pipeline.prepare.read.rejections import content_of, left_out, parse_line, published_line
from pipeline.prepare.read.values import RejectedError
from pipeline.store.chunk_cache import REJECTED, ChunkCache
from pipeline.store.fingerprint import ContentHash, key_of, rejected_frame
from pipeline.store.shards import LinesWriter


class Collected:
    """All that the manifest says of what was read.

    Args:
        sources: The files.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.stats, self.content = DatasetStats(), ContentHash()
        self.files = [FileCounts() for _ in sources]
        self._conversations = 0
        self._split: str | None = None

    def take(self, done: Done, chunks: ChunkCache, rejected: LinesWriter) -> None:
        """Take in what is counted of a chunk, and what was left out of it."""
        content = done.chunk.content
        if done.segment.split != self._split:  # where one ends decides the rows, too
            self._split = done.segment.split
            self.content.records(f"split {self._split}")
        self.stats.add(DatasetStats.of_json(content["stats"]))
        self.content.records(content["frames"])
        self.content.conversation(bytes.fromhex(content["digests"]))
        self._conversations += sum(rows >= 0 for rows in content["rows"])
        starts = [self.files[piece.file].records for piece in done.segment.pieces]
        for piece, found in zip(done.segment.pieces, content["pieces"], strict=True):
            self.files[piece.file].take(found)
        if REJECTED in done.chunk.files:
            path = chunks.pinned(done.chunk.key, REJECTED)
            with path.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    number, position, rest = parse_line(line)
                    file = done.segment.pieces[number].file
                    name = self._sources[file].name
                    rejected.write(published_line(name, starts[number] + position, rest))
        for piece in done.segment.pieces:
            if piece.ends_file:
                self._end_file(piece.file, rejected)

    def _end_file(self, file: int, rejected: LinesWriter) -> None:
        """Check that the brackets of a file match, where nothing in it was broken."""
        counts = self.files[file]
        found = None if counts.is_resumed else end_fault(counts.brackets, counts.records)
        if found is None:
            return
        error = RejectedError(found.reason, found.detail)
        self.content.records(rejected_frame(found.reason, content_of(found, error)))
        self.stats.reasons[found.reason] += 1
        name = self._sources[file].name
        rejected.write(published_line(name, found.position, left_out(found, error)))
        counts.records, counts.rejected = counts.records + 1, counts.rejected + 1

    def counts(self) -> dict[str, Any]:
        """Return the manifest's ``counts``."""
        records = sum(file.records for file in self.files)
        rejected = sum(file.rejected for file in self.files)
        kept = self._conversations + self.stats.reasons["duplicate"]
        return {
            "records": records,
            "rejected": rejected,
            "joined": records - rejected - kept,
            "conversations": self._conversations,
            "pairs": self.stats.pairs,
            "reasons": self.stats.all_reasons(),
        }


class FileCounts:
    """What is counted of one file."""

    def __init__(self) -> None:
        self.records = self.rejected = self.brackets = 0
        self.is_resumed = False
        self.forms, self._digests = Counter[str](), list[str]()

    def take(self, piece: dict[str, Any]) -> None:
        """Take in a piece's counts."""
        self.records += piece["records"]
        self.rejected += piece["rejected"]
        self.brackets += piece["brackets"]
        self.is_resumed |= piece["resumed"]
        self.forms.update(piece["forms"])
        self._digests.append(piece["digest"])

    def as_json(self) -> dict[str, Any]:
        """Return the counts as the manifest has them."""
        return {
            "content": key_of(self._digests),
            "records": self.records,
            "rejected": self.rejected,
            "forms": dict(sorted(self.forms.items())),
        }
