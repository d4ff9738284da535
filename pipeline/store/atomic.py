"""Writes that are whole or not there: temporary sibling, fsync, rename."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import OutputError


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        OutputError: The disk is full, or the folder cannot be written.
    """
    if isinstance(content, str):
        content = content.encode("utf-8")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with output_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def publish_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place; one that stands there is replaced.

    Every file in it is synced first, so that a folder with a manifest is whole after a crash.
    """
    with output_errors(final):
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            else:
                sync_folder(path)
        sync_folder(temporary)
        if final.exists():
            old = final.with_name(f".{final.name}.{os.getpid()}.old")
            final.rename(old)
            temporary.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(final)
        sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def output_errors(where: Path) -> Iterator[None]:
    """Turn what the file system raises while writing into one clear line."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            "cannot write",
            where=error.filename or where,
            got=error.strerror or error,
            do="free some space, or give a folder that can be written",
        ) from error
