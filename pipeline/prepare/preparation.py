"""One preparation: read, join, encode, write, publish."""

import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pipeline.config import PrepareConfig
from pipeline.errors import InputError
from pipeline.logs import ByteProgress, note
from pipeline.prepare.cache import PreparedCache
from pipeline.prepare.cutting import Part, part_sizes
from pipeline.prepare.encode.segment_encoder import EVAL, TRAIN
from pipeline.prepare.found import Known, RereadError
from pipeline.prepare.gc_tuning import rare_collections
from pipeline.prepare.making import PartMaker
from pipeline.prepare.options import reading_options, row_options
from pipeline.prepare.passage_log import PassageLog
from pipeline.prepare.read.formats import format_of
from pipeline.prepare.read.reading import Reading
from pipeline.prepare.read.rejections import RejectedFile
from pipeline.prepare.read.sources import FileState, Source, states_of
from pipeline.store.atomic import output_errors, publish_folder
from pipeline.store.chunk_cache import PartStore
from pipeline.store.fingerprint import key_of, sha256_of_file
from pipeline.store.manifest import (
    SCHEMA_VERSION,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from pipeline.store.passages import Passage, PassageStore
from pipeline.store.prepared import PreparedWriter
from pipeline.store.shards import row_schema
from pipeline.tokenizer import load_tokenizer


def make_prepared_folder(
    config: PrepareConfig,
    sources: list[Source],
    states: list[FileState],
    hashes: list[str],
    cache: PreparedCache,
) -> Path:
    """Read files, make what is not kept of earlier runs, and publish a prepared folder.

    Args:
        config: The settings.
        sources: The files, in order.
        states: What they were like before they were hashed.
        hashes: Their SHA-256.
        cache: Where the folder goes.

    Raises:
        InputError: A path cannot be read, or no pair is left.
        TokenizerError: The tokenizer cannot be had.
        OutputError: The result cannot be written. Nothing is published then.
    """
    preparation = _Preparation(config, sources, states, hashes, cache)
    try:
        return preparation.run()
    except RereadError as error:
        note(f"{error}: all of it is read again")
        return preparation.run(reread=True)


# Below this, starting workers takes as long as the work, unless it is compressed: then they are
# started when there turns out to be more.
_BYTES_FOR_WORKERS = 1 << 23


class _Preparation:
    """One run, from the files to the published folder."""

    def __init__(
        self,
        config: PrepareConfig,
        sources: list[Source],
        states: list[FileState],
        hashes: list[str],
        cache: PreparedCache,
    ) -> None:
        self._config, self._sources, self._states = config, sources, states
        self._hashes, self._cache = hashes, cache
        self._total_bytes = sum(size for size, *_ in states)

    def run(self, *, reread: bool = False) -> Path:
        """Do the work in a temporary sibling and publish it.

        Args:
            reread: Read all of the files, though some of it may be known from earlier runs.

        Raises:
            RereadError: What was known turned out not to help.
        """
        with (
            rare_collections(),
            self._cache.temporary() as temporary,
            PartMaker(self._config, PartStore(self._cache.parts, temporary / "parts")) as maker,
        ):
            # Where passages are known there may be little to do.
            if self._total_bytes >= _BYTES_FOR_WORKERS and (reread or not self._cache.has_passages):
                maker.start()
            self._tokenizer = load_tokenizer(
                self._config.model_name_or_path, self._config.cache_dir
            )
            maker.use(self._tokenizer)
            self._reading = self._start_reading(temporary, maker, reread)
            folder = temporary / "prepared"
            shards = self._write_rows(folder, maker)
            self._check_unchanged()
            if not any(shard.rows for shard in shards if shard.split == TRAIN):
                raise self._nothing_left()
            fingerprint = key_of(
                self._reading.content.hexdigest(),
                row_options(self._config),
                self._tokenizer.fingerprint,
                SCHEMA_VERSION,
            )
            with self._cache.lock(fingerprint):
                final = self._cache.complete(fingerprint)
                if final is None:
                    final = self._publish(folder, fingerprint, shards)
                else:
                    names = ", ".join(source["name"] for source in read_manifest(final).sources)
                    note(f"the same content was prepared before, from {names}")
        self._cache.remember(fingerprint)
        return final

    def _start_reading(self, temporary: Path, maker: PartMaker, reread: bool) -> Reading:
        passages = PassageStore(
            self._cache.passages,
            temporary,
            maker.settings_key,
            reading_options(self._config),
            part_sizes(),
        )

        def find(kind: str, mark: bytes) -> Passage | None:
            passage = passages.find(kind, mark)
            return passage if passage is not None and maker.has(passage.part) else None

        log = PassageLog(passages, self._sources, self._states)
        is_anything_known = bool(passages) and not reread
        return Reading(self._config, self._sources, log, find if is_anything_known else None)

    def _check_unchanged(self) -> None:
        """Refuse what was read of a file that is not the one that was hashed."""
        for source, digest, before, after in zip(
            self._sources, self._hashes, self._states, states_of(self._sources), strict=True
        ):
            # A new link to a file changes its state, too, and not what is in it.
            if before != after and sha256_of_file(source.path) != digest:
                raise InputError(
                    "a file changed while it was read",
                    where=source.path,
                    got="another size or time than before",
                    do="start again when it is complete; finished parts are kept",
                )

    def _publish(self, folder: Path, fingerprint: str, shards: list[Shard]) -> Path:
        write_manifest(folder, self._manifest(fingerprint, shards))
        final = self._cache.folder / fingerprint
        publish_folder(folder, final)
        return final

    def _write_rows(self, folder: Path, maker: PartMaker) -> list[Shard]:
        splits = [TRAIN, EVAL] if self._config.eval_fraction else [TRAIN]
        prepared = PreparedWriter(folder, splits, row_schema(self._tokenizer.vocab_size))
        with (
            RejectedFile(folder / "rejected.jsonl") as rejected,
            ByteProgress("preparing", self._total_bytes) as progress,
        ):
            parts = self._reading.parts(maker.key_of, progress, rejected)
            for info in maker.make(self._then_the_tokenizer(parts, folder), prepared):
                self._reading.tally.add(info)
                progress.status = f"{self._reading.tally.pairs:,} pairs"
        return prepared.close()

    def _then_the_tokenizer(
        self, parts: Iterator[Part | Known], folder: Path
    ) -> Iterator[Part | Known]:
        """Pass on the parts; write the tokenizer while workers encode the last of them."""
        yield from parts
        with output_errors(folder):
            self._tokenizer.save(
                folder / "tokenizer", model_max_length=self._config.model_max_length
            )

    def _nothing_left(self) -> InputError:
        tally = self._reading.tally
        if tally.pairs:
            return InputError(
                "no pair is left to train on",
                where="--eval-fraction",
                got=f"all {tally.pairs} pairs fell into the split eval",
                do="give a smaller one, or more conversations",
            )
        reasons = ", ".join(f"{name} {n}" for name, n in sorted(tally.reasons.items())) or "none"
        return InputError(
            "no pair is left to train on",
            where=", ".join(s.name for s in self._sources[:5]),
            got=f"{tally.accepted + tally.rejected} records, {tally.rejected} rejected ({reasons})"
            + self._reading.first_rejection,
            do="give ShareGPT records with a human turn and an assistant turn after it",
        )

    def _manifest(self, fingerprint: str, shards: list[Shard]) -> Manifest:
        tally, model = self._reading.tally, self._config.model_name_or_path
        return Manifest(
            fingerprint=fingerprint,
            config=row_options(self._config)
            | {"model_name_or_path": Path(model).resolve().name if Path(model).is_dir() else model},
            sources=[
                {
                    "name": source.name,
                    "bytes": size,
                    "sha256": digest,
                    "format": format_of(source.path),
                    "records": counts["records"],
                    "rejected": counts["rejected"],
                    "forms": dict(sorted(forms.items())),
                }
                for source, (size, *_), digest, counts, forms in zip(
                    self._sources,
                    self._states,
                    self._hashes,
                    self._reading.source_counts,
                    self._reading.source_forms,
                    strict=True,
                )
            ],
            counts={
                "records": tally.accepted + tally.rejected,
                "rejected": tally.rejected,
                "joined": tally.joined,
                "conversations": tally.conversations,
                "pairs": tally.pairs,
                "reasons": tally.all_reasons(),
            },
            unused_keys=tally.records.unused_keys(),
            tokens=tally.tokens() | {"vocab_size": self._tokenizer.vocab_size},
            shards=shards,
            versions={"python": platform.python_version()}
            | {name: version(name) for name in ("duet-t5", "tokenizers", "pyarrow")},
        )
