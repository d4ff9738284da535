"""The first stage as a whole: find the sources, and the folder prepared of them, or make it."""

import dataclasses
import os
import sys
from pathlib import Path

from pipeline.config import PrepareConfig
from pipeline.config.fields import is_url
from pipeline.console.logs import note
from pipeline.hub.model_files import source_files
from pipeline.model_kind import check_model_kind
from pipeline.prepare.cache import PreparedCache, lock_in
from pipeline.prepare.files.sources import Source, find_sources
from pipeline.prepare.options import row_options
from pipeline.prepare.read.remarks import remarks
from pipeline.store.fingerprint import key_of, sha256_of_file
from pipeline.store.manifest import SCHEMA_VERSION, read_manifest
from pipeline.store.remote import info, remote_path
from pipeline.store.summary import summary
from pipeline.store.uploading import upload


def prepare(config: PrepareConfig) -> Path | str:
    """Turn ShareGPT records into a prepared folder, or find the one made of the same content.

    Args:
        config: The settings.

    Returns:
        ``config.output_dir/<fingerprint>``, complete; a URL where that is one.

    Raises:
        InputError: A path is missing or cannot be read, or no pair is left.
        ModelError, TokenizerError: The tokenizer cannot be loaded, or does not fit the model.
        OutputError: The result cannot be written. Nothing is published then.
    """
    if is_url(config.output_dir):
        return _prepare_to_url(config)
    return prepare_here(config)


def _prepare_to_url(config: PrepareConfig) -> str:
    """Prepare in this user's cache folder, where chunks are kept, and copy the result."""
    target = remote_path(config.output_dir)
    info(target)  # credentials that are wrong are better known now than at the end
    cache = cache_folder()
    folder = prepare_here(dataclasses.replace(config, output_dir=str(cache)))
    copy = target / folder.name
    with lock_in(cache, f"upload-{key_of(str(copy))}"):
        if not upload(folder, read_manifest(folder), copy):
            note(f"already there, complete: {copy}")
    return str(copy)


def cache_folder() -> Path:
    """Return where this user's programs keep what can be made again (XDG's rule)."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "duet-t5"


def prepare_here(config: PrepareConfig) -> Path:
    """Do what ``prepare`` does, on this machine's disk."""
    folder = find_or_make(config)
    manifest = read_manifest(folder)
    print(summary(manifest, folder), file=sys.stderr)
    for line in remarks(manifest, folder):
        note(line)
    return folder


def find_or_make(config: PrepareConfig) -> Path:
    """Return the prepared folder, without a word of what stands in it."""
    check_model_kind(config.model_name_or_path, config.cache_dir)
    # The eval split comes first, so that train has none of it.
    sources = find_sources(config.data_path, config.eval_data_path)
    files = [(source.identity(), source.state, source.split) for source in sources]
    model = source_files(config.model_name_or_path, config.cache_dir)
    tokenizer_key = [(path.name, sha256_of_file(path)) for path in model]
    key = key_of(files, row_options(config), tokenizer_key, SCHEMA_VERSION)
    cache = PreparedCache(Path(config.output_dir), key)
    folder = cache.find()
    if folder is None:
        if config.engine == "ray":
            from pipeline.prepare.engines.ray import in_own_process

            folder = in_own_process(_make, config, sources, cache)
        else:
            folder = _make(config, sources, cache)
    else:
        note("already prepared, from the same files with the same options")
    return folder


def _make(config: PrepareConfig, sources: list[Source], cache: PreparedCache) -> Path:
    """Make the prepared folder, unless another process did, which had the lock."""
    # Imported late: what was prepared before is found in half the time without it.
    from pipeline.prepare.preparation import Preparation

    with lock_in(cache.folder, cache.key):
        return cache.find() or Preparation(config, sources, cache).run()
