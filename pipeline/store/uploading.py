"""A prepared folder to a URL, file by file; ``manifest.json`` last: there, it means complete."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console.progress import ByteProgress
from pipeline.errors import OutputError
from pipeline.json_object import read_json_object
from pipeline.store.manifest import FILENAME, Manifest
from pipeline.store.remote import files_below, open_binary, remote_errors

if TYPE_CHECKING:
    from upath import UPath


def upload(folder: Path, manifest: Manifest, target: "UPath") -> bool:
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
    sizes = files_below(target)
    if FILENAME in sizes:
        if sizes.keys() >= set(names) and _is_of(target, manifest.fingerprint, sizes):
            return False
        with remote_errors(OutputError, target / FILENAME):
            (target / FILENAME).unlink()
    total = sum((folder / name).stat().st_size for name in names)
    with ByteProgress("uploading", total) as progress:
        for name in sorted(names):
            _put(folder / name, target / name)
            progress.advance((folder / name).stat().st_size)
    _put(folder / FILENAME, target / FILENAME)
    return True


def _put(source: Path, target: "UPath") -> None:
    with remote_errors(OutputError, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.fs.put_file(str(source), target.path)


def _is_of(target: "UPath", fingerprint: str, sizes: dict[str, int]) -> bool:
    """Return whether the manifest there has this fingerprint, and each of its shards its size."""
    with open_binary(target / FILENAME) as file:
        content = file.read()
    try:
        fields = read_json_object(content)
        shards = [(shard["path"], shard["bytes"]) for shard in fields["shards"]]
        return fields["fingerprint"] == fingerprint and all(
            sizes.get(path) == size for path, size in shards
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
