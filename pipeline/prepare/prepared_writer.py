"""Puts a prepared folder together from chunks: shards in order, and what ``datasets`` reads."""

from pathlib import Path

from pipeline.store.atomic import output_errors
from pipeline.store.chunk_cache import REJECTED, Chunk, ChunkCache, link
from pipeline.store.manifest import Shard
from pipeline.store.shards import (
    ShardFile,
    ShardWriter,
    row_schema,
    write_dataset_dict,
    write_split,
)


class PreparedWriter:
    """Collects the shards of a prepared folder.

    Args:
        folder: Where it is put together.
        splits: Its splits, in order.
        vocab_size: Of the tokenizer.
    """

    def __init__(self, folder: Path, splits: list[str], vocab_size: int) -> None:
        self._folder, self._vocab_size = folder, vocab_size
        self._shards: dict[str, list[Shard]] = {split: [] for split in splits}
        for split in splits:
            with output_errors(folder / split):
                (folder / split).mkdir(parents=True)

    def add(self, cache: ChunkCache, chunk: Chunk) -> None:
        """Append the rows of a pinned chunk, by a link to its files."""
        for name, file in chunk.files.items():
            if name != REJECTED:
                link(cache.pinned(chunk.key, name), self._append(name.removesuffix(".arrow"), file))

    def close(self) -> list[Shard]:
        """Write what ``datasets`` reads; return all shards, split by split."""
        for split, shards in self._shards.items():
            if not shards:  # datasets opens no split without a file
                path = self._folder / split / "shard-00000.arrow"
                self._append(split, ShardWriter(path, row_schema(self._vocab_size)).close())
            write_split(self._folder, split, shards)
        write_dataset_dict(self._folder, list(self._shards))
        return [shard for shards in self._shards.values() for shard in shards]

    def _append(self, split: str, file: ShardFile) -> Path:
        path = f"{split}/shard-{len(self._shards[split]):05d}.arrow"
        shard = Shard(path=path, split=split, rows=file.rows, bytes=file.bytes, sha256=file.sha256)
        self._shards[split].append(shard)
        return self._folder / path
