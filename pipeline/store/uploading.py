"""A prepared folder to a URL, file by file; ``manifest.json`` last: there, it means complete."""

import json
from pathlib import Path
from typing import Any

from pipeline.logs import ByteProgress
from pipeline.store.manifest import FILENAME, Manifest
from pipeline.store.remote import RemotePath


def upload(folder: Path, manifest: Manifest, target: RemotePath) -> bool:
    """Copy a prepared folder, unless it is there, complete.

    An object store shows a file when it is whole. Elsewhere half a manifest may be seen for a
    moment; it is no JSON, and so no proof of anything.

    Args:
        folder: The prepared folder.
        manifest: Its manifest.
        target: Where it goes: the copy's own path, not its parent's.

    Returns:
        Whether there was something to do.

    Raises:
        InputError, OutputError: The file system does not answer. No manifest is there then.
    """
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    names.remove(FILENAME)
    sizes = target.sizes()
    if FILENAME in sizes:
        if sizes.keys() >= set(names) and _is_of(target, manifest.fingerprint, sizes):
            return False
        (target / FILENAME).remove()
    total = sum((folder / name).stat().st_size for name in names)
    with ByteProgress("uploading", total) as progress:
        for name in sorted(names):
            (target / name).put(folder / name)
            progress.advance((folder / name).stat().st_size)
    (target / FILENAME).put(folder / FILENAME)
    return True


def _is_of(target: RemotePath, fingerprint: str, sizes: dict[str, int]) -> bool:
    """Tell whether the manifest there has this fingerprint, and each of its shards its size."""
    with (target / FILENAME).open("rb") as file:
        content = file.read()
    try:
        fields: dict[str, Any] = json.loads(content)
        shards = [(shard["path"], shard["bytes"]) for shard in fields["shards"]]
        return fields["fingerprint"] == fingerprint and all(
            sizes.get(path) == size for path, size in shards
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
