"""Files to records in one go, without workers and cache: for those who read the data again."""

from collections.abc import Iterable, Iterator, Sequence

from pipeline.prepare.files.file_kind import Kind, recognize
from pipeline.prepare.files.json_values import Fault, Record, end_fault
from pipeline.prepare.files.segments import Piece, PieceReader
from pipeline.prepare.files.sources import Source, find_sources

DataFile = tuple[Source, Kind]
"""A file of records, and how it is read."""


def find_files(data_path: Sequence[str]) -> list[DataFile]:
    """Return the files of records that some paths name, and say which others are skipped.

    Args:
        data_path: Files, folders, globs or URLs.

    Raises:
        InputError: A path is missing or cannot be read, or holds no records.
    """
    sources = find_sources(data_path)
    kinds = recognize(sources, [None] * len(sources))
    return [(s, kind) for s, kind in zip(sources, kinds, strict=True) if kind is not None]


def read_files(files: Iterable[DataFile]) -> Iterator[tuple[Source, Record | Fault]]:
    """Yield what is found in some files, in order, each with its file.

    Raises:
        InputError: A file cannot be read.
    """
    for source, kind in files:
        reader, position = PieceReader(Piece(0, source, kind)), 0
        for found in reader.values():
            position = found.position + 1
            yield source, found
        fault = None if reader.is_resumed else end_fault(reader.brackets, position)
        if fault is not None:
            yield source, fault
