"""The segment: the unit of reading, of parallel work and of caching.

A segment is one piece of a large file, or some small files as a whole, a piece each. A piece of
JSON goes from the first record after one anchor to the first record after another: whoever takes
it finds both by itself, in the text, and those who take its neighbours find the same. Whether it
was right to cut there is known after reading: then the piece is clean.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InputError
from pipeline.prepare.files.anchors import ReadAt, record_after
from pipeline.prepare.files.file_kind import Kind
from pipeline.prepare.files.json_values import Fault, Record, ValueReader, records_of
from pipeline.prepare.files.sources import Source
from pipeline.prepare.files.streams import as_utf8, read_range, read_text, reading_at
from pipeline.store.fingerprint import key_of, sha256_of_file

ALL_ROWS = 1 << 62
_BACK = 1 << 16


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one file, read in one go."""

    file: int
    """The file's index among a run's."""
    source: Source
    kind: Kind
    start: int = 0
    """A byte of JSON, or a row of a table."""
    end: int = ALL_ROWS
    starts_at_anchor: bool = False
    """Then it begins with the first record after ``start``."""
    ends_file: bool = True
    """Else, of JSON, it ends with the first record after ``end``."""
    size: int = 0
    """How many bytes of the file it stands for."""
    content: bytes | None = None
    """Of a packed file that is too large for one task: the text of the stretch."""
    error: str | None = None
    """Why the text of a packed file ends, if it should not."""
    indent: int = 0
    """Of a packed file: the indent of the line that the stretch begins in."""

    def follows(self, other: "Piece") -> bool:
        """Return whether it is what comes after another piece of the same file."""
        return self.file == other.file and not other.ends_file and other.kind == self.kind

    def with_next(self, following: "Piece") -> "Piece":
        """Return this piece and the one after it as one."""
        content = None
        if self.content is not None and following.content is not None:
            content = self.content + following.content
        return replace(
            self,
            end=following.end,
            ends_file=following.ends_file,
            size=self.size + following.size,
            content=content,
            error=following.error,
        )

    def is_visible(self) -> bool:
        """Return whether the file can be seen from here, with the size and time that it had."""
        try:
            return self.source.state_now()[:2] == self.source.state[:2]
        except InputError:
            return False

    def with_content(self) -> "Piece":
        """Return the piece with its bytes, to be read where its file cannot be seen."""
        if self.content is not None or self.kind != "json":
            return self
        reader = PieceReader(self)
        if not reader.find_bounds():
            return self
        exact = reader.piece
        with reading_at(self.source.path) as read_at:
            content = read_at(exact.start, exact.end - exact.start)
            indent = indent_at(read_at, exact.start, 0)
        return replace(exact, content=content, indent=indent)


@dataclass(frozen=True, slots=True)
class Segment:
    """Pieces that are read one after another, by one task."""

    pieces: tuple[Piece, ...]
    known: str | None = None
    """The key of its chunk, where the files are those that an earlier run read."""

    @property
    def split(self) -> str | None:
        """The split that its files were given for; None: a hash of the id decides."""
        return self.pieces[0].source.split

    @property
    def size(self) -> int:
        """How many bytes of its files it stands for."""
        return sum(piece.size for piece in self.pieces)

    def is_visible(self) -> bool:
        """Return whether its files can be seen from here, as they were when the run began."""
        return all(piece.content is not None or piece.is_visible() for piece in self.pieces)

    def with_content(self) -> "Segment":
        """Return the segment with the bytes of its pieces, to be read where they cannot be seen."""
        return replace(self, pieces=tuple(piece.with_content() for piece in self.pieces))

    def has_content(self) -> bool:
        """Return whether all that is to be read of it came with it."""
        return all(piece.content is not None for piece in self.pieces)

    def with_next(self, following: "Segment") -> "Segment":
        """Return this segment and the one after it as one."""
        if not following.pieces[0].follows(self.pieces[-1]):
            return Segment(self.pieces + following.pieces)
        joined = self.pieces[-1].with_next(following.pieces[0])
        return Segment((*self.pieces[:-1], joined, *following.pieces[1:]))


class PieceReader:
    """Reads one piece, and knows afterwards how it ended."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.brackets, self.is_resumed, self.is_clean = 0, False, True
        self.depends_on_before = False
        """Whether what was read depends on what stands before the piece."""
        self._sent = list[bytes]()

    def find_bounds(self) -> bool:
        """Find where a piece of JSON begins and ends; return whether both were found."""
        piece = self.piece
        if piece.kind != "json" or piece.content is not None:
            return True
        bounds = _bounds(piece)
        if bounds is None:
            return False
        self.piece = replace(piece, start=bounds[0], end=bounds[1], starts_at_anchor=False)
        return True

    def digest(self) -> str:
        """Return a hash of all that decides what is read, once its bounds are found."""
        piece = self.piece
        how = [piece.kind, piece.start == 0, piece.ends_file, piece.error, piece.indent]
        if piece.kind in ("parquet", "arrow"):
            from pipeline.prepare.files.tables import rows_digest  # late: it needs Arrow

            content = rows_digest(piece.source.path, piece.kind, piece.start, piece.end)
        elif piece.kind == "packed json" and piece.content is None:
            content = sha256_of_file(piece.source.path)
        else:
            found = hashlib.sha256()
            chunks: Iterable[bytes] = self._chunks()
            if not isinstance(piece.source.path, Path):  # for its hash and its records, sent once
                chunks = self._sent = list(chunks)
            for chunk in chunks:
                found.update(chunk)
            content = found.hexdigest()
        return key_of(how, content)

    def values(self) -> Iterator[Record | Fault]:
        """Yield what is found, with positions from the piece's start.

        Raises:
            InputError: It cannot be read.
        """
        records = (record for found in self._found() for record in records_of(found))
        for position, record in enumerate(records):
            record.position = position
            yield record

    def _found(self) -> Iterator[Record | Fault]:
        piece = self.piece
        if piece.kind in ("parquet", "arrow"):
            from pipeline.prepare.files.tables import read_rows

            yield from read_rows(piece.source.path, piece.kind, piece.start, piece.end)
            return
        reader = ValueReader(
            self._chunks(),
            ends_file=piece.ends_file,
            error=piece.error,
            indent_before=self._indent_before,
        )
        yield from reader
        self.brackets, self.is_resumed = reader.brackets, reader.is_resumed
        self.is_clean = reader.is_clean

    def check_unchanged(self, digest: str) -> None:
        """Refuse what was read of a file that is not the one that the run began with.

        Raises:
            InputError: It is another one.
        """
        source = self.piece.source
        if self.piece.content is not None or (now := source.state_now()) == source.state:
            return
        # A new link to a file changes its state, too, and not what is in it.
        if now[0] != source.state[0] or self.digest() != digest:
            raise changed(source)

    def _chunks(self) -> Iterator[bytes]:
        """Yield the text of the stretch, without a mark at the file's start."""
        piece = self.piece
        if piece.content is not None:
            yield piece.content
        elif self._sent:
            yield from self._sent
        elif piece.kind == "packed json":
            yield from read_text(piece.source.path)
        else:
            chunks = read_range(piece.source.path, piece.start, piece.end)
            yield from as_utf8(chunks) if piece.start == 0 else chunks

    def _indent_before(self) -> int:
        """Return the indent of the line that the piece begins in."""
        piece = self.piece
        if piece.content is not None or piece.start == 0:
            return piece.indent
        self.depends_on_before = True
        with reading_at(piece.source.path) as read_at:
            return indent_at(read_at, piece.start, 0)


def changed(source: Source) -> InputError:
    """Return the one line that says that a file changed."""
    return InputError(
        "a file changed while it was read",
        where=source.path,
        got="another size, time or content than before",
        do="start again when it is complete; finished chunks are kept",
    )


def _bounds(piece: Piece) -> tuple[int, int] | None:
    with reading_at(piece.source.path) as read_at:
        start: int | None = piece.start
        if piece.starts_at_anchor:
            start = record_after(read_at, piece.start)
        end = piece.end if piece.ends_file else record_after(read_at, piece.end)
    return None if start is None or end is None else (start, max(start, end))


def indent_at(read_at: ReadAt, place: int, first: int) -> int:
    """Return the indent of the line that a place is in; ``first`` is that of the first line."""
    end = place
    while True:
        start = max(end - _BACK, 0)
        newline = read_at(start, end - start).rfind(b"\n")
        if newline >= 0:
            begin = start + newline + 1
            line = read_at(begin, min(place - begin, _BACK))
            return len(line) - len(line.lstrip(b" \t"))
        if start == 0:
            return first
        end = start
