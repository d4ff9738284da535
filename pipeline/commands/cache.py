"""What preparations keep on disk: ``duet cache ls`` shows it, ``duet cache prune`` trims it.

A prepared folder is whole without its chunks, so chunks can always go; what goes with them is time,
when nearly the same data are prepared again.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.config import CacheConfig
from pipeline.console.units import file_size
from pipeline.errors import InputError, PreparedFolderError
from pipeline.json_object import read_json_object
from pipeline.store.atomic import output_errors, unfinished_files
from pipeline.store.chunk_cache import FILENAME as CHUNK_FILENAME
from pipeline.store.chunk_cache import iterate_chunks
from pipeline.store.manifest import FILENAME, read_manifest
from pipeline.store.seals import read_checked

_DAY = 86_400


def cache(config: CacheConfig) -> Iterator[str]:
    """List or prune what is kept below ``config.output_dir``; yield the lines to print.

    Raises:
        InputError: There is no such folder.
        OutputError: Something cannot be deleted.
    """
    folder = Path(config.output_dir)
    if not folder.is_dir():
        raise InputError(
            "no such folder",
            where=folder,
            got="a file" if folder.exists() else "nothing there",
            do="give the --output-dir of duet prepare",
        )
    yield from _list(folder) if config.action == "ls" else _prune(folder, config)


@dataclass(frozen=True, slots=True)
class _KeptChunk:
    path: Path
    size: int
    is_linked: bool
    """Whether a prepared folder holds its files too: then deleting it frees nothing."""
    last_used: float

    @classmethod
    def of(cls, path: Path) -> "_KeptChunk":
        stats = {file.name: file.stat() for file in path.iterdir()}
        shards = [stat for name, stat in stats.items() if name.endswith(".arrow")]
        return cls(
            path,
            sum(stat.st_size for stat in stats.values()),
            bool(shards) and all(stat.st_nlink > 1 for stat in shards),
            stats[CHUNK_FILENAME].st_mtime,
        )


def _list(folder: Path) -> Iterator[str]:
    yield f"{'prepared folder':<26}{'rows':>12}{'size':>12}  made from"
    for path in sorted(path.parent for path in folder.glob(f"[!.]*/{FILENAME}")):
        try:
            manifest = read_manifest(path)
        except PreparedFolderError as error:
            yield f"{path.name:<26}{'-':>12}{'-':>12}  {error.what}: {error.got}"
            continue
        rows = sum(shard.rows for shard in manifest.shards)
        names = ", ".join(source["name"] for source in manifest.sources[:3])
        more = len(manifest.sources) - 3
        names += f" and {more} more" if more > 0 else ""
        yield f"{path.name:<26}{rows:>12,}{file_size(_bytes_below(path)):>12}  {names}"
    chunks = _chunks(folder)
    spare = [chunk for chunk in chunks if not chunk.is_linked]
    yield _total("chunks kept", [chunk.size for chunk in chunks])
    remark = "delete them with: duet cache prune"
    yield _total("  in no prepared folder", [p.size for p in spare], remark if spare else "")
    left = [_bytes_below(path) for path in _leftovers(folder)]
    yield _total("left by killed runs", left, remark if left else "")


def _prune(folder: Path, config: CacheConfig) -> Iterator[str]:
    limit = time.time() - config.older_than * _DAY
    chosen = [
        chunk
        for chunk in _chunks(folder)
        if chunk.last_used <= limit and (config.all_parts or not chunk.is_linked)
    ]
    for chunk in chosen:
        _delete(chunk.path, config.dry_run)
    yield _total("chunks", [chunk.size for chunk in chosen], _verb(config.dry_run))
    sizes = []
    for path in _leftovers(folder):
        size = _bytes_below(path)
        if _delete_leftover(folder, path, config.dry_run):
            sizes.append(size)
    yield _total("left by killed runs", sizes, _verb(config.dry_run))
    _forget_missing(folder, config.dry_run)
    _forget_files(folder, config.dry_run)


def _verb(dry_run: bool) -> str:
    return "would be deleted" if dry_run else "deleted"


def _chunks(folder: Path) -> list[_KeptChunk]:
    found = []
    for path in iterate_chunks(folder / ".chunks"):
        with contextlib.suppress(FileNotFoundError, KeyError):  # pruned by another
            found.append(_KeptChunk.of(path))
    return found


def _leftovers(folder: Path) -> list[Path]:
    """Return the temporary folders of runs, of which some may be running, and unfinished files."""
    replaced = [*folder.glob(".*.old"), *folder.glob(".chunks/??/.*.old")]
    written = folder / ".index", folder / ".index" / "files", *folder.glob("[!.]*/")
    unfinished = [path for place in written for path in unfinished_files(place)]
    # .parts is what versions before the chunk cache kept.
    return sorted([*folder.glob(".tmp-*-*"), *folder.glob(".parts"), *replaced, *unfinished])


def _delete_leftover(folder: Path, path: Path, dry_run: bool) -> bool:
    """Delete a temporary folder unless its run is still there; return whether it goes."""
    if not path.name.startswith(".tmp-"):
        _delete(path, dry_run)
        return True
    key = path.name.removeprefix(".tmp-").rpartition("-")[0]
    lock = FileLock(folder / ".locks" / f"{key}.lock")
    try:
        with lock.acquire(timeout=0):
            _delete(path, dry_run)
    except Timeout:
        return False
    return True


def _forget_missing(folder: Path, dry_run: bool) -> None:
    """Delete the index entries of prepared folders that are not there any more."""
    for path in folder.glob(".index/*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            name = str(read_json_object(path)["fingerprint"])
            if not dry_run and not (folder / name).exists():
                path.unlink()


def _forget_files(folder: Path, dry_run: bool) -> None:
    """Delete what is known of files whose chunks are not there any more."""
    kept = {path.name for path in iterate_chunks(folder / ".chunks")}
    for path in folder.glob(".index/files/*.json"):
        entry = read_checked(path) or {"segments": [[[], ""]]}
        is_readable = "-" in path.name  # earlier versions named them otherwise
        if not dry_run and not (is_readable and all(k in kept for _, k in entry["segments"])):
            path.unlink(missing_ok=True)


def _delete(path: Path, dry_run: bool) -> None:
    if not dry_run:
        with output_errors(path), contextlib.suppress(FileNotFoundError):  # another was faster
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _bytes_below(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):  # which passes over what others delete meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(folder) / name).lstat().st_size
    return total


def _total(name: str, sizes: list[int], remark: str = "") -> str:
    return f"{name:<26}{len(sizes):>12,}{file_size(sum(sizes)):>12}  {remark}".rstrip()
