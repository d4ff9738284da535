"""One preparation: plan, encode, put together, publish."""

import contextlib
import functools
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.console.logs import note
from pipeline.console.progress import ByteProgress
from pipeline.console.units import counted
from pipeline.errors import InputError
from pipeline.prepare.cache import PreparedCache, lock_in
from pipeline.prepare.collected import Collected
from pipeline.prepare.encode.chunk_content import EVAL, TRAIN
from pipeline.prepare.engines import make_engine
from pipeline.prepare.engines.base import Engine
from pipeline.prepare.engines.gc_tuning import rare_collections
from pipeline.prepare.engines.ordering import Done, OrderedChunks
from pipeline.prepare.files.file_index import FileIndex
from pipeline.prepare.files.file_kind import Kind, recognize
from pipeline.prepare.files.planning import Planner, group_files
from pipeline.prepare.files.segments import PieceReader, Segment, changed
from pipeline.prepare.files.sources import Source, note_held_out
from pipeline.prepare.options import row_options
from pipeline.prepare.prepared_writer import PreparedWriter
from pipeline.prepare.read.rejections import in_words
from pipeline.prepare.read.remedies import remedy_for
from pipeline.store.atomic import publish_folder, write_files
from pipeline.store.chunk_cache import REJECTED, ChunkCache
from pipeline.store.fingerprint import key_of
from pipeline.store.manifest import SCHEMA_VERSION, Manifest, Shard, read_manifest, write_manifest
from pipeline.store.shards import LinesWriter


class Preparation:
    """One run, from the files to the published folder.

    Args:
        config: The settings.
        sources: The files, in order.
        cache: Where the folder goes.
    """

    def __init__(self, config: PrepareConfig, sources: list[Source], cache: PreparedCache) -> None:
        self._config, self._sources, self._cache = config, sources, cache
        self._collected = Collected(sources)

    def run(self) -> Path:
        """Read files, make what is not kept of earlier runs, and publish a prepared folder.

        Raises:
            InputError: A path cannot be read, or no pair is left.
            TokenizerError: The tokenizer cannot be loaded.
            OutputError: The result cannot be written. Nothing is published then.
        """
        with rare_collections(), self._cache.temporary() as temporary:
            chunks = ChunkCache(self._cache.chunks, temporary)
            engine = make_engine(self._config, chunks)
            try:
                final = self._run(temporary, chunks, engine)
            finally:
                engine.close()
        # Last: a run that finds the folder at once takes nothing away that a killed one left.
        self._cache.remember(final.name, self._sources)
        return final

    def _run(self, temporary: Path, chunks: ChunkCache, engine: Engine) -> Path:
        self._groups = group_files(self._sources)
        self._group_of = {file: group for group in self._groups for file in group.files}
        engine.start(self._config, self._num_bytes(range(len(self._sources))))
        index = FileIndex(self._cache.folder, self._sources, lambda: engine.info().key, chunks)
        self._kinds = self._recognize(index)
        segments = self._planner(engine).segments(self._groups)  # while the tokenizer is loaded
        self._info = engine.info()
        if self._info.is_rendered:
            changes = self._info.template_changes
            more = f", which does not take all: {changes}" if changes else ""
            note(f"the encoder's text is rendered by the model's own chat template{more}")
        folder = temporary / "prepared"
        shards = self._write(folder, chunks, engine, segments)
        self._check_unchanged()
        index.remember(self._groups, self._kinds)
        if not any(shard.rows for shard in shards if shard.split == TRAIN):
            raise self._nothing_left(folder)
        fingerprint = key_of(
            self._collected.content.hexdigest(),
            row_options(self._config),
            self._info.tokenizer_fingerprint,
            SCHEMA_VERSION,
        )
        with lock_in(self._cache.folder, fingerprint):
            final = self._cache.complete(fingerprint)
            if final is None:
                write_manifest(folder, self._manifest(fingerprint, shards))
                final = self._cache.folder / fingerprint
                publish_folder(folder, final)
            else:
                names = ", ".join(source["name"] for source in read_manifest(final).sources)
                note(f"already prepared, from the same content in {names}")
        return final

    def _recognize(self, index: FileIndex) -> list[Kind | None]:
        """Return how each file is read; take from the index what is known of them."""
        known = [kind for group in self._groups for kind in index.find(group)]
        kinds = recognize(self._sources, known)
        read = [s for s, kind in zip(self._sources, kinds, strict=True) if kind is not None]
        if not any(source.split for source in self._sources):
            note_held_out(read)
        return kinds

    def _num_bytes(self, files: Any) -> int:
        return sum(self._sources[file].state[0] for file in files)

    def _planner(self, engine: Engine) -> Planner:
        return Planner(
            self._sources,
            self._kinds,
            functools.partial(engine.submit, "anchors"),
            functools.partial(engine.submit, "row_ranges"),
        )

    def _write(
        self, folder: Path, chunks: ChunkCache, engine: Engine, segments: Iterator[Segment]
    ) -> list[Shard]:
        """Write the shards, the tokenizer and what was rejected."""
        has_eval = bool(self._config.eval_fraction) or any(s.split == EVAL for s in self._sources)
        splits = [TRAIN, EVAL] if has_eval else [TRAIN]
        prepared = PreparedWriter(folder, splits, self._info.vocab_size)
        tokenizer = engine.submit("tokenizer_files")
        ordered = OrderedChunks(engine, segments, dedup=self._config.dedup)
        read = [i for i, kind in enumerate(self._kinds) if kind is not None]
        with (
            contextlib.closing(LinesWriter(folder / REJECTED)) as rejected,
            ByteProgress("preparing", self._num_bytes(read)) as progress,
        ):
            for done in ordered:
                prepared.add(chunks, done.chunk)
                self._collected.take(done, chunks, rejected)
                self._note_group(done)
                progress.status = counted(self._collected.stats.pairs, "pair")
                progress.advance(done.segment.size)
        write_files(folder / "tokenizer", tokenizer())
        return prepared.close()

    def _note_group(self, done: Done) -> None:
        """Put down with a segment's group of files what it gives, whatever stands around it."""
        groups = (self._group_of[piece.file] for piece in done.segment.pieces)
        for group in {id(group): group for group in groups}.values():
            group.segments.append((done.segment, done.read.key))

    def _check_unchanged(self) -> None:
        """Refuse what was read of a file that is not the one that the run began with."""
        for file, source in enumerate(self._sources):
            if source.state_now() != source.state and not self._is_same(file):
                raise changed(source)

    def _is_same(self, file: int) -> bool:
        """Return whether what was read of a file still stands in it; a link changes its state."""
        for segment, key in self._group_of[file].segments:
            for piece in segment.pieces:
                if piece.file == file and piece.content is None:
                    reader = PieceReader(piece)
                    if not reader.find_bounds() or reader.digest() not in self._digests(key):
                        return False
        return True

    def _digests(self, key: str) -> set[str]:
        chunk = ChunkCache(self._cache.chunks, Path()).find(key)
        return {piece["digest"] for piece in chunk.content["pieces"]} if chunk else set()

    def _nothing_left(self, folder: Path) -> InputError:
        stats, counts = self._collected.stats, self._collected.counts()
        if stats.pairs and self._config.eval_data_path:
            return InputError(
                "no pair is left to train on",
                where="--data-path",
                got=f"all {stats.pairs} pairs are of --eval-data-path, which is read first",
                do="give conversations that --eval-data-path does not repeat",
            )
        if stats.pairs:
            return InputError(
                "no pair is left to train on",
                where="--eval-fraction",
                got=f"all {stats.pairs} pairs fell into the eval split",
                do="give a smaller one, or more conversations",
            )
        reasons = ", ".join(f"{name} {n}" for name, n in counts["reasons"].items()) or "none"
        first, records = "", counted(counts["records"], "record")
        with (folder / REJECTED).open(encoding="utf-8", newline="\n") as lines:
            if line := lines.readline():
                first = f"; the first, {in_words(line)}"
        return InputError(
            "no pair is left to train on",
            where=", ".join(s.name for s in self._sources[:5]),
            got=f"{records}, {counts['rejected']} rejected ({reasons}){first}",
            do=remedy_for(counts["reasons"]),
        )

    def _manifest(self, fingerprint: str, shards: list[Shard]) -> Manifest:
        stats, model = self._collected.stats, self._config.model_name_or_path
        return Manifest(
            fingerprint=fingerprint,
            config=row_options(self._config)
            | {"model_name_or_path": Path(model).resolve().name if Path(model).is_dir() else model},
            sources=[
                {"name": source.name, "bytes": source.state[0], "format": kind} | counts.as_json()
                for source, kind, counts in zip(
                    self._sources, self._kinds, self._collected.files, strict=True
                )
                if kind is not None
            ],
            files_passed_over=sum(kind is None for kind in self._kinds),
            counts=self._collected.counts(),
            unused_keys=stats.records.unused_keys(),
            tokens=stats.tokens() | {"vocab_size": self._info.vocab_size},
            shards=shards,
            versions={"python": platform.python_version()} | self._info.versions,
        )
