"""A chunk as the segments around its own want it: without repeats, and joined over the cuts."""

from collections.abc import Iterator, Sequence, Set
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.prepare.encode.chunk_content import EVAL, REPEAT, TRAIN, Edit
from pipeline.prepare.encode.chunk_rows import ChunkRows
from pipeline.prepare.encode.dataset_stats import DatasetStats
from pipeline.store.chunk_cache import REJECTED, Chunk, ChunkCache


def edited(chunk: Chunk, change: Edit, cache: ChunkCache, start: ChunkRows) -> dict[str, Any]:
    """Write the rows that a pinned chunk has after a change; return what stands beside them.

    Args:
        chunk: What its segment gives by itself.
        change: What is different.
        cache: Where the chunk is pinned.
        start: Takes the conversation that stands in the first one's place, and writes the rows.
    """
    content, writer = chunk.content, start.writer
    stats, rows = DatasetStats.of_json(content["stats"]), list(content["rows"])
    gone, last = set(change.repeats), len(rows) - 1
    stats.reasons["duplicate"] += len(gone)
    if change.drops_last:
        gone.add(last)
        stats.reasons["duplicate"] -= rows[last] == REPEAT
    is_written = change.start is not None and 0 not in gone
    if change.start is not None:
        gone.add(0)
    noted = dict(content["noted"])
    for i in gone:
        stats.subtract_pairs(noted.get(i, {}))
    new_rows = REPEAT
    if change.start is not None and is_written:
        start.encode([change.start])
        stats.add(start.stats)
        new_rows = start.each[0].rows
    for split, batch, is_gone in _rows_of(chunk, gone, cache):
        if is_gone:
            stats.add_rows(batch, start.unk_id, sign=-1)
        else:
            writer.write(split, batch)
    if REJECTED in chunk.files:
        writer.keep(cache.pinned(chunk.key, REJECTED), chunk.files[REJECTED])
    for i in gone:
        rows[i] = REPEAT
    if change.start is not None:
        rows[0] = new_rows
    digests = b"".join(change.digests(content)).hex()
    rows = rows[: len(rows) - change.drops_last]
    return content | {"rows": rows, "digests": digests, "stats": stats.as_json()}


def _rows_of(
    chunk: Chunk, gone: Set[int], cache: ChunkCache
) -> Iterator[tuple[str, pa.RecordBatch, bool]]:
    """Yield the rows of a chunk with their split, and whether they go."""
    evaluated = set(chunk.content["evaluated"])
    for split in (TRAIN, EVAL):
        chosen = [
            (rows, i in gone)
            for i, rows in enumerate(chunk.content["rows"])
            if rows > 0 and (i in evaluated) == (split == EVAL)
        ]
        if chosen:
            for batch, is_gone in _runs(cache.pinned(chunk.key, f"{split}.arrow"), chosen):
                yield split, batch, is_gone


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
