"""Parquet and Arrow IPC files: ranges of rows that can be read apart, and the records in them."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.prepare.files.file_kind import Kind
from pipeline.prepare.files.json_values import Fault, Record
from pipeline.prepare.files.streams import read_range
from pipeline.store.fingerprint import sha256_of_file
from pipeline.store.remote import AnyPath, open_binary

_BROKEN = (OSError, pa.ArrowException, ValueError)
_BATCH = 256
# A slice of a row group is decoded from the group's start: more slices would decode more than once
# too often.
_MOST_SLICES = {"parquet": 8, "arrow": 1 << 20}


def row_ranges(path: AnyPath, kind: Kind, size: int) -> list[tuple[int, int]]:
    """Return ranges of rows, one after another, of about ``size`` bytes each.

    One range of a file that is broken: reading it says what is wrong.
    """
    try:
        if kind == "parquet":
            with _parquet_table(path) as table:
                groups = [table.metadata.row_group(i) for i in range(table.num_row_groups)]
                sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        else:
            sizes = [(batch.num_rows, batch.nbytes) for batch in _arrow_batches(path)]
    except _BROKEN:
        return [(0, 0)]
    return _cut(sizes, size, _MOST_SLICES[kind])


def _cut(groups: Iterable[tuple[int, int]], size: int, most: int) -> list[tuple[int, int]]:
    """Put groups of rows, given by rows and bytes, together or cut them to slices.

    >>> _cut([(10, 100), (10, 100), (10, 1000)], 200, 3)
    [(0, 20), (20, 23), (23, 26), (26, 30)]
    """
    ranges: list[tuple[int, int]] = []
    start = at = held = 0
    for rows, num_bytes in groups:
        slices = min(max(num_bytes // size, 1), most, max(rows, 1))
        if slices > 1:
            bounds = [at + rows * i // slices for i in range(slices + 1)]
            ranges += ([(start, at)] if at > start else []) + list(pairwise(bounds))
        at, held = at + rows, held + num_bytes
        if slices > 1 or held >= size:
            if slices == 1:
                ranges.append((start, at))
            start, held = at, 0
    if at > start or not ranges:
        ranges.append((start, at))
    return ranges


def read_rows(path: AnyPath, kind: Kind, start: int, end: int) -> Iterator[Record | Fault]:
    """Yield the rows of a range as they are; where the file is broken, a fault ends it."""
    try:
        for batch in _batches(path, kind, start, end):
            yield from _records(batch)
    except _BROKEN as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Fault(f"broken_{kind}", f"the file is cut off or damaged ({detail})")


def rows_digest(path: AnyPath, kind: Kind, start: int, end: int) -> str:
    """Return the SHA-256 of what a range of rows is decoded from, and of where it is in it."""
    digest = hashlib.sha256()
    try:
        if kind == "parquet":
            with _parquet_table(path) as table:
                digest.update(repr(table.schema_arrow).encode())
                stretches = list(_column_chunks(table.metadata, start, end))
            for before, first, last in stretches:
                digest.update(f"{start - before} {end - before} {last - first}".encode())
                for chunk in read_range(path, first, last):
                    digest.update(chunk)
        else:
            for batch in _batches(path, kind, start, end):
                digest.update(repr(batch.schema).encode())
                digest.update(batch.serialize())
    except _BROKEN:
        return sha256_of_file(path)
    return digest.hexdigest()


@contextlib.contextmanager
def _parquet_table(path: AnyPath) -> Iterator[Any]:
    # Imported late: few read Parquet, and it takes long.
    import pyarrow.parquet as pq

    with open_binary(path) as file, pq.ParquetFile(file) as table:
        yield table


def _column_chunks(metadata: Any, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield, for each column chunk of some rows, the rows before its group and its bytes."""
    before = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        if before < end and before + group.num_rows > start:
            for j in range(group.num_columns):
                column = group.column(j)
                offsets = (column.dictionary_page_offset, column.data_page_offset)
                first = min(offset for offset in offsets if offset is not None)
                yield before, first, first + column.total_compressed_size
        before += group.num_rows


def _batches(path: AnyPath, kind: Kind, start: int, end: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a range in batches."""
    at = 0
    for batch in _parquet_batches(path, start, end) if kind == "parquet" else _arrow_batches(path):
        if isinstance(batch, int):  # rows of groups that were skipped
            at += batch
            continue
        first, last = max(start - at, 0), min(end - at, batch.num_rows)
        for low in range(first, last, _BATCH):
            yield batch.slice(low, min(_BATCH, last - low))
        at += batch.num_rows
        if at >= end:
            break


def _parquet_batches(path: AnyPath, start: int, end: int) -> Iterator[pa.RecordBatch | int]:
    with _parquet_table(path) as table:
        before = 0
        if not end and table.metadata.num_rows:
            raise ValueError("the file changed")
        for i in range(table.num_row_groups):
            rows = table.metadata.row_group(i).num_rows
            if before + rows <= start:
                yield rows
            elif before < end:
                yield from table.iter_batches(batch_size=_BATCH, row_groups=[i])
            before += rows


def _arrow_batches(path: AnyPath) -> Iterator[pa.RecordBatch]:
    with contextlib.ExitStack() as stack:
        file: Any
        if isinstance(path, Path):
            file = stack.enter_context(pa.memory_map(str(path)))
        else:
            file = stack.enter_context(open_binary(path))
        head = file.read(6)
        file.seek(0)
        if head == b"ARROW1":
            reader = pa.ipc.open_file(file)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(file)


def _records(batch: pa.RecordBatch) -> Iterator[Record | Fault]:
    try:
        yield from map(Record, batch.to_pylist())
    except ValueError as error:  # of one row or more; bytes that are no UTF-8 are one
        if batch.num_rows == 1:
            yield Fault("invalid_utf8", str(error))
            return
        for i in range(batch.num_rows):
            yield from _records(batch.slice(i, 1))
