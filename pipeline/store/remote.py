"""Paths that are URLs: a ``UPath`` each, with one clear line for every fault of its file system.

Which file system a URL means, and with what credentials, is fsspec's business; ``s3://`` and
``gs://`` want a package of their own. A network that fails is never taken for a file that ends, nor
a right that is missing for a path that is not there: so files are looked up by ``info``, which says
which it is, and read through ``open_binary``, which opens this machine's files too.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.errors import ConfigError, DuetError, InputError, OutputError

if TYPE_CHECKING:
    from upath import UPath

AnyPath: TypeAlias = "Path | UPath"
_BUFFER = 1 << 20
_BLOCK = 1 << 22


def remote_path(url: str) -> "UPath":
    """Return the path of a URL; nothing is looked up yet.

    Raises:
        ConfigError: No file system goes by that scheme, or its package is not installed.
    """
    from upath import UPath  # imported late: only URLs need it

    try:
        path = UPath(url.rstrip("/"))
        file_system = path.fs
    except (ImportError, ValueError) as error:
        raise ConfigError(
            "no file system for this kind of path",
            where=url,
            got=error,
            do=_remedy(url) if isinstance(error, ImportError) else "check what is before ://",
        ) from error
    with remote_errors(InputError, url):
        file_system.invalidate_cache()  # what an earlier run listed may have changed
    return path


def info(path: "UPath") -> dict[str, Any] | None:
    """Return what a file system says of a path, ``type`` and ``size``; None: nothing is there.

    Raises:
        InputError: It does not answer.
    """
    with remote_errors(InputError, path), contextlib.suppress(FileNotFoundError):
        found: dict[str, Any] = path.fs.info(path.path)
        return found
    return None


def files_below(folder: "UPath") -> dict[str, int]:
    """Return the size of each file below a folder, by its path there; empty if there is none.

    Raises:
        InputError: The file system does not answer.
    """
    with remote_errors(InputError, folder):
        found = folder.fs.find(folder.path, detail=True)
    # Some write what is before this folder's name in another way than it was given.
    own = f"/{folder.name}/"
    return {
        name.partition(own)[2] if own in name else name: details["size"] or 0
        for name, details in found.items()
    }


def glob(path: "UPath") -> list["UPath"]:
    """Return the files and folders that a path matches as a glob, sorted; hidden ones if it asks.

    Raises:
        InputError: The file system does not answer.
    """
    with remote_errors(InputError, path):
        names = sorted(path.fs.glob(path.path))
    hidden = "/." in path.path  # only if the pattern says so, as on a disk
    names = [name for name in names if hidden or "/." not in name]
    return [type(path)(path.fs.unstrip_protocol(name)) for name in names]


def open_binary(path: AnyPath) -> io.BufferedReader:
    """Open a file for reading, on this machine or elsewhere.

    Raises:
        InputError: It cannot be read; elsewhere also while reading.
    """
    try:
        if isinstance(path, Path):
            return path.open("rb")
        return io.BufferedReader(_Reader(path), _BUFFER)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: object, error: OSError) -> InputError:
    """Return the one line that says that a file cannot be read."""
    return InputError(
        "a file cannot be read",
        where=path,
        got=error.strerror or error,
        do="check that nothing moves or deletes it"
        if isinstance(error, FileNotFoundError)
        else "check the path, its permissions and the disk it is on",
    )


def range_reader(path: "UPath") -> Callable[[int, int], bytes]:
    """Return a function of an offset and a size that asks for just these bytes of a file.

    One that is opened reads ahead, and by tens of megabytes where its file system likes to.

    Raises:
        OSError: It has no known size.
        InputError: It cannot be read; also while reading.
    """
    with remote_errors(InputError, path):
        num_bytes = path.fs.size(path.path)
    if num_bytes is None:
        raise OSError("a stream that cannot be read twice")

    def read_at(start: int, size: int) -> bytes:
        end = min(start + size, num_bytes)
        if start >= end:
            return b""
        with remote_errors(InputError, path):
            found: bytes = path.fs.cat_file(path.path, start=start, end=end)
        # A web server that knows no ranges sends all of it.
        return found if len(found) <= end - start else found[start:end]

    return read_at


class _Reader(io.RawIOBase):
    """A file of fsspec whose faults are ``InputError``."""

    def __init__(self, path: "UPath") -> None:
        self.name = str(path)
        with remote_errors(InputError, path):
            # By itself, S3's reads 50 MB ahead at every place.
            self._file: Any = path.fs.open(path.path, "rb", block_size=_BLOCK)
            if not self._file.seekable():
                self._file.close()
                raise OSError("a stream that cannot be read twice")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with remote_errors(InputError, self.name):
            data: bytes = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with remote_errors(InputError, self.name):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(Exception):  # all was read that was wanted
                self._file.close()
        super().close()


@contextlib.contextmanager
def remote_errors(kind: type[InputError | OutputError], url: object) -> Iterator[None]:
    """Make one clear line of a file system's fault, whatever class its package gives it."""
    try:
        yield
    except DuetError:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise kind(
            "a remote path cannot be " + ("read" if kind is InputError else "written"),
            where=url,
            got=f"{type(error).__name__}: {said or 'no word'}",
            do="check the path, the credentials and the network, then start again",
        ) from error


def _remedy(url: str) -> str:
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0].rpartition("::")[2]
    package = known_implementations[scheme]["class"].partition(".")[0]
    return "install the package that is named" if package == "fsspec" else f"pip install {package}"
