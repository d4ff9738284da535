"""The first stage as a whole: find the sources, read, join, encode, write, publish."""

import platform
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig, is_url
from pipeline.conversation import Conversation
from pipeline.errors import InputError
from pipeline.prepare.cache import PreparedCache
from pipeline.prepare.collector import rare_collections
from pipeline.prepare.cutting import cut_parts
from pipeline.prepare.formats import format_of
from pipeline.prepare.joining import join_parts
from pipeline.prepare.making import PartMaker
from pipeline.prepare.options import row_options
from pipeline.prepare.part_encoder import EVAL, TRAIN
from pipeline.prepare.reader import Fault, Record, read_records
from pipeline.prepare.records import RejectedError, parse_record, roles_with
from pipeline.prepare.rejections import RejectedFile, content_of
from pipeline.prepare.remote_output import prepare_to_url
from pipeline.prepare.sources import Source, find_sources
from pipeline.prepare.tally import Tally
from pipeline.progress import ByteProgress, note
from pipeline.store.atomic import output_errors, publish_folder
from pipeline.store.fingerprint import ContentHash, key_of, sha256_of_file, turns_digest
from pipeline.store.manifest import (
    SCHEMA_VERSION,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from pipeline.store.prepared import PreparedWriter
from pipeline.store.shards import row_schema
from pipeline.store.summary import summary
from pipeline.tokenizer import load_tokenizer, source_files


def prepare(config: PrepareConfig) -> Path | str:
    """Turn ShareGPT records into a prepared folder, or find the one made of the same content.

    Args:
        config: The settings.

    Returns:
        ``config.output_dir/<fingerprint>``, complete; a URL where that is one.

    Raises:
        InputError: A path is missing or cannot be read, or no pair is left.
        ModelError, TokenizerError: The tokenizer cannot be had.
        OutputError: The result cannot be written. Nothing is published then.
    """
    if is_url(config.output_dir):
        return prepare_to_url(config, prepare_here)
    return prepare_here(config)


def prepare_here(config: PrepareConfig) -> Path:
    """Do what ``prepare`` does, on this machine's disk."""
    sources = find_sources(config.data_path)
    states = _states(sources)
    hashes = [sha256_of_file(source.path) for source in sources]
    model = source_files(config.model_name_or_path, config.cache_dir)
    tokenizer_key = [(path.name, sha256_of_file(path)) for path in model]
    key = key_of(hashes, row_options(config), tokenizer_key, SCHEMA_VERSION)
    cache = PreparedCache(Path(config.output_dir), key, [source.stem for source in sources])
    folder = cache.find()
    if folder is None:
        with cache.lock(key):
            folder = cache.find() or _Preparation(config, sources, states, hashes, cache).run()
    else:
        note("prepared before, from the same content with the same options")
    print(summary(read_manifest(folder), folder), file=sys.stderr)
    return folder


def _states(sources: list[Source]) -> list[Any]:
    try:
        return [source.state() for source in sources]
    except OSError as error:
        raise InputError(
            "a file cannot be read",
            where=error.filename,
            got=error.strerror or error,
            do="check that it stays where it is",
        ) from error


# Below this, starting workers takes as long as the work, unless it is compressed: then they are
# started when there turns out to be more.
_BYTES_FOR_WORKERS = 1 << 23


class _Preparation:
    """One run, from the files to the published folder."""

    def __init__(
        self,
        config: PrepareConfig,
        sources: list[Source],
        states: list[Any],
        hashes: list[str],
        cache: PreparedCache,
    ) -> None:
        self._config, self._sources, self._states = config, sources, states
        self._hashes, self._cache = hashes, cache
        self._total_bytes = sum(source.path.stat().st_size for source in sources)
        self._roles = roles_with(config.extra_roles())
        self._content, self._tally = ContentHash(), Tally()
        self._named_after_files = False
        self._source_counts = [Counter[str]() for _ in sources]
        self._first_rejection = ""

    def run(self) -> Path:
        """Do the work in a temporary sibling and publish it."""
        with (
            rare_collections(),
            self._cache.temporary() as temporary,
            PartMaker(self._config, self._cache.parts(temporary)) as maker,
        ):
            if self._total_bytes >= _BYTES_FOR_WORKERS:
                maker.start()
            self._tokenizer = load_tokenizer(
                self._config.model_name_or_path, self._config.cache_dir
            )
            maker.use(self._tokenizer)
            folder = temporary / "prepared"
            shards = self._write_rows(folder, maker)
            self._check_unchanged()
            if not any(shard.rows for shard in shards if shard.split == TRAIN):
                raise self._nothing_left()
            fingerprint = key_of(
                self._content.hexdigest(),
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
        self._cache.remember(fingerprint, named_after_files=self._named_after_files)
        return final

    def _check_unchanged(self) -> None:
        """Refuse what was read of a file that is not the one that was hashed."""
        for source, before, after in zip(
            self._sources, self._states, _states(self._sources), strict=True
        ):
            if before != after:
                raise InputError(
                    "a file changed while it was read",
                    where=source.path,
                    got="another size or time than before",
                    do="start again when it is complete; finished parts are kept",
                )

    def _publish(self, folder: Path, fingerprint: str, shards: list[Shard]) -> Path:
        with output_errors(folder):
            self._tokenizer.save(
                folder / "tokenizer", model_max_length=self._config.model_max_length
            )
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
            parts = cut_parts(self._conversations(progress, rejected))
            for info in maker.make(parts, prepared):
                self._tally.add(info)
                progress.status = f"{self._tally.pairs:,} pairs"
        return prepared.close()

    def _conversations(
        self, progress: ByteProgress, rejected: RejectedFile
    ) -> Iterator[tuple[Conversation, bytes]]:
        """Yield the conversations that are kept, joined and without repeats, and their digests."""
        records = self._accepted(progress, rejected)
        seen: set[bytes] = set()
        for conversation in join_parts(records) if self._config.join_parts else records:
            digest = turns_digest(conversation.turns)
            self._content.conversation(digest)
            if self._config.dedup and digest in seen:
                self._tally.reasons["duplicate"] += 1
                continue
            if self._config.dedup:
                seen.add(digest)
            self._tally.conversations += 1
            yield conversation, digest

    def _accepted(self, progress: ByteProgress, rejected: RejectedFile) -> Iterator[Conversation]:
        """Yield the records that are conversations; write the others to ``rejected``."""
        for source, counts in zip(self._sources, self._source_counts, strict=True):
            for found in read_records(source, progress.advance):
                counts["records"] += 1
                try:
                    conversation = self._parse(found, source)
                except RejectedError as error:
                    counts["rejected"] += 1
                    self._reject(found, source, error, rejected)
                else:
                    self._tally.accepted += 1
                    self._content.accepted(conversation.id, len(conversation.turns))
                    yield conversation

    def _parse(self, found: Record | Fault, source: Source) -> Conversation:
        if isinstance(found, Fault):
            raise RejectedError(found.reason, found.detail)
        default_id = f"{source.stem}:{found.position}"
        conversation = parse_record(found.value, default_id, self._roles)
        self._named_after_files |= found.value.get("id") is None
        return conversation

    def _reject(
        self, found: Record | Fault, source: Source, error: RejectedError, rejected: RejectedFile
    ) -> None:
        self._tally.rejected += 1
        self._tally.reasons[error.reason] += 1
        self._first_rejection = self._first_rejection or (
            f"; the first: {source.name}, record {found.position}, {error}"
        )
        rejected.write(source.name, found, error)
        self._content.rejected(error.reason, content_of(found, error))

    def _nothing_left(self) -> InputError:
        tally = self._tally
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
            + self._first_rejection,
            do="give ShareGPT records with a human turn and an assistant turn after it",
        )

    def _manifest(self, fingerprint: str, shards: list[Shard]) -> Manifest:
        tally, model = self._tally, self._config.model_name_or_path
        return Manifest(
            fingerprint=fingerprint,
            config=row_options(self._config)
            | {"model_name_or_path": Path(model).resolve().name if Path(model).is_dir() else model},
            sources=[
                {
                    "name": source.name,
                    "bytes": source.path.stat().st_size,
                    "sha256": digest,
                    "format": format_of(source.path),
                    "records": counts["records"],
                    "rejected": counts["rejected"],
                }
                for source, digest, counts in zip(
                    self._sources, self._hashes, self._source_counts, strict=True
                )
            ],
            counts={
                "records": tally.accepted + tally.rejected,
                "rejected": tally.rejected,
                "conversations": tally.conversations,
                "pairs": tally.pairs,
                "reasons": {name: n for name, n in sorted(tally.reasons.items()) if n},
            },
            tokens=tally.tokens() | {"vocab_size": self._tokenizer.vocab_size},
            shards=shards,
            versions={"python": platform.python_version()}
            | {name: version(name) for name in ("duet-t5", "tokenizers", "pyarrow")},
        )
