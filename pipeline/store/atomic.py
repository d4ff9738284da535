"""Writes that are whole or not there: temporary sibling, fsync, rename."""

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import OutputError

_HOUR = 3_600


def write_file(path: Path, content: bytes | str, *, is_durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: Where to.
        content: What; text as UTF-8.
        is_durable: Wait for the disk: after a crash of the machine, too, the content is whole.

    Raises:
        OutputError: The disk is full, or the folder cannot be written.
    """
    if isinstance(content, str):
        content = content.encode("utf-8")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with output_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                if is_durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
            if is_durable:
                sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def unfinished_files(folder: Path) -> list[Path]:
    """Return what calls of ``write_file`` that were killed left in a folder.

    Only what is an hour old: by then nobody writes it, on this machine or, of a shared disk, on
    another one, whose processes cannot be asked.
    """
    found = list[Path]()
    for path in folder.glob(".*.*-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime < time.time() - _HOUR:
                found.append(path)
    return found


def append_durably(path: Path, text: str) -> None:
    """Add text to a file's end, and wait for the disk. A crash may leave a part of it there.

    Raises:
        OutputError: It cannot be written.
    """
    with output_errors(path), path.open("ab") as file:
        file.write(text.encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())


def publish_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place; what stands there is replaced.

    Every file in it is synced first, so that a folder with a manifest is whole after a crash.
    Others may publish the same folder at the same moment: one of them stays.
    """
    with output_errors(final):
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            else:
                sync_folder(path)
        sync_folder(temporary)
        old = final.with_name(f".{final.name}.{os.getpid()}-{threading.get_ident()}.old")
        while not _renamed(temporary, final):
            with contextlib.suppress(FileNotFoundError):
                final.rename(old)
                _remove(old)
        sync_folder(final.parent)


def _renamed(source: Path, target: Path) -> bool:
    """Rename a folder unless something stands in its way; return whether it is done."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder that is yet to be published.

    Raises:
        OutputError: One cannot be written.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep others who ask for it out of a folder. The system takes the lock from one who dies.

    Where the system or the folder's disk has no such locks, there is none.

    Raises:
        OutputError: Another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            _lock(descriptor, "LOCK_EX", "LOCK_NB")
        except BlockingIOError as error:
            raise OutputError(
                "another process writes into this folder",
                where=folder,
                got="a lock on it",
                do="wait until it ends, stop it, or give another folder",
            ) from error
        yield
    finally:
        os.close(descriptor)


def hold_folder(folder: Path) -> bool:
    """Keep a folder from ``remove_folder`` until this process ends, however it ends.

    Returns:
        Whether the folder is there.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)  # never closed: the system does it at the end
        _lock(descriptor, "LOCK_SH")
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, as soon as no process holds it (``hold_folder``)."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor, "LOCK_EX")
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *flags: str) -> None:
    """Lock what is open; without effect where the system or the disk has no such locks.

    Raises:
        BlockingIOError: Another process has it, and ``LOCK_NB`` is among the flags.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, sum(getattr(fcntl, flag) for flag in flags))
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        pass


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
