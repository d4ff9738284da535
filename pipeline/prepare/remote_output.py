"""A preparation whose ``--output-dir`` is a URL: made on this machine's disk, then copied there."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.config import PrepareConfig
from pipeline.logs import note
from pipeline.prepare.cache import lock_in
from pipeline.store.fingerprint import key_of
from pipeline.store.manifest import read_manifest
from pipeline.store.remote import RemotePath
from pipeline.store.uploading import upload


def prepare_to_url(config: PrepareConfig, prepare_here: Callable[[PrepareConfig], Path]) -> str:
    """Prepare in this user's cache folder, where parts are kept, and copy the result.

    Args:
        config: The settings; ``output_dir`` is a URL.
        prepare_here: Prepares in a local folder.

    Returns:
        The URL of the prepared folder, complete.

    Raises:
        DuetError: What ``prepare_here`` raises.
        InputError, OutputError: The URL cannot be read or written. What was prepared is kept.
    """
    target = RemotePath.of(config.output_dir)
    target.exists()  # credentials that are wrong are better known now than at the end
    cache = cache_folder()
    folder = prepare_here(dataclasses.replace(config, output_dir=str(cache)))
    copy = target / folder.name
    with lock_in(cache, f"upload-{key_of(copy.url)}"):
        if not upload(folder, read_manifest(folder), copy):
            note(f"complete there before: {copy}")
    return copy.url


def cache_folder() -> Path:
    """Return where this user's programs keep what can be made again (XDG's rule)."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "duet-t5"
