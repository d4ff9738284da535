"""Paths that are URLs, through fsspec: as much of ``pathlib.Path`` as this project needs.

Which file system a URL means, and with what credentials, is fsspec's business; ``s3://`` and
``gs://`` want a package of their own. Every fault of a file system, whatever class its package
gives it, becomes one clear line here: a network that fails is never taken for a file that ends.
"""

import contextlib
import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.errors import ConfigError, DuetError, InputError, OutputError

_BUFFER = 1 << 20


class Stat(NamedTuple):
    """What is known of a file without reading it."""

    st_size: int


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a file system that fsspec knows.

    Args:
        url: As a user would write it.
        path: As the file system writes it.
        fs: The file system.
    """

    url: str
    path: str
    fs: Any = field(repr=False)

    @classmethod
    def of(cls, url: str) -> "RemotePath":
        """Return the path of a URL; nothing is looked up yet.

        Raises:
            ConfigError: No file system goes by that scheme, or its package is not installed.
        """
        from fsspec.core import url_to_fs  # imported late: only URLs need it

        try:
            fs, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                "no file system for this kind of path",
                where=url,
                got=error,
                do=_remedy(url) if isinstance(error, ImportError) else "check what is before ://",
            ) from error
        with _faults(InputError, url):
            fs.invalidate_cache()  # what an earlier run listed may have changed
        return cls(url.rstrip("/"), path, fs)

    def __str__(self) -> str:
        """Return the URL."""
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        """Return a path below this one."""
        return RemotePath(f"{self.url}/{name}", f"{self.path.rstrip('/')}/{name}", self.fs)

    @property
    def parts(self) -> tuple[str, ...]:
        """The URL's parts; the last one is the name."""
        return tuple(self.url.split("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return self.parts[-1]

    def exists(self) -> bool:
        """Tell whether there is something."""
        return self._info is not None

    def is_file(self) -> bool:
        """Tell whether it is a file."""
        return self._info is not None and self._info["type"] == "file"

    def is_dir(self) -> bool:
        """Tell whether it is a folder."""
        return self._info is not None and self._info["type"] == "directory"

    def stat(self) -> Stat:
        """Return a file's size; 0 where the file system does not say."""
        return Stat((self._info or {}).get("size") or 0)

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yield what is in a folder."""
        with _faults(InputError, self.url):
            infos = self.fs.ls(self.path, detail=True)
        for info in infos:
            if info["name"].strip("/") != self.path.strip("/"):  # a bucket may hold its own name
                yield self._found(info)

    def files_below(self) -> Iterator[tuple[tuple[str, ...], "RemotePath"]]:
        """Yield the files below a folder, and the parts of their paths there."""
        with _faults(InputError, self.url):
            found = self.fs.find(self.path, detail=True)
        for name, info in found.items():
            yield tuple(self._below(name).split("/")), self._found(info)

    def glob(self) -> list["RemotePath"]:
        """Return what this path matches as a glob, sorted; hidden ones only if it says so."""
        with _faults(InputError, self.url):
            infos = self.fs.glob(self.path, detail=True)
        hidden = "/." in self.path
        return [self._found(infos[n]) for n in sorted(infos) if hidden or "/." not in n]

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """Open a file for reading, as a stream.

        Raises:
            InputError: It cannot be read; also while reading.
        """
        with _faults(InputError, self.url):
            file = self.fs.open(self.path, mode)
            if not file.seekable():
                file.close()
                raise OSError("a stream that cannot be read twice")
        return io.BufferedReader(_Reader(file, self.url), _BUFFER)

    def sizes(self) -> dict[str, int]:
        """Return the size of each file below a folder, by its path there; empty if there is none.

        Raises:
            InputError: The file system does not answer.
        """
        with _faults(InputError, self.url):
            found = self.fs.find(self.path, detail=True)
        return {self._below(path): info["size"] for path, info in found.items()}

    def put(self, source: Path) -> None:
        """Write a local file's content here, over what is there.

        Raises:
            OutputError: It cannot be written.
        """
        with _faults(OutputError, self.url):
            self.fs.makedirs(self.fs._parent(self.path), exist_ok=True)
            self.fs.put_file(str(source), self.path)

    def remove(self) -> None:
        """Delete a file.

        Raises:
            OutputError: It cannot be deleted.
        """
        with _faults(OutputError, self.url):
            self.fs.rm_file(self.path)

    @functools.cached_property
    def _info(self) -> dict[str, Any] | None:
        with _faults(InputError, self.url), contextlib.suppress(FileNotFoundError):
            info: dict[str, Any] = self.fs.info(self.path)
            return info
        return None

    def _below(self, name: str) -> str:
        """Return a name that the file system gave without this folder's own."""
        own = f"{self.path.rstrip('/')}/"
        # Some write what is before a folder's name in another way than it was given.
        return (
            name.removeprefix(own) if name.startswith(own) else name.partition(f"/{self.name}/")[2]
        )

    def _found(self, info: dict[str, Any]) -> "RemotePath":
        path = RemotePath(self.fs.unstrip_protocol(info["name"]), info["name"], self.fs)
        path.__dict__["_info"] = info
        return path


AnyPath = Path | RemotePath


class _Reader(io.RawIOBase):
    """A file of fsspec whose faults are ``InputError``."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self.name = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _faults(InputError, self.name):
            data: bytes = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _faults(InputError, self.name):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(Exception):  # all was read that was wanted
                self._file.close()
        super().close()


@contextlib.contextmanager
def _faults(kind: type[InputError | OutputError], url: str) -> Iterator[None]:
    """Make one clear line of a file system's fault."""
    try:
        yield
    except DuetError:
        raise
    except Exception as error:  # each package has classes of its own
        said = str(error).strip().splitlines()
        raise kind(
            "a remote path cannot be " + ("read" if kind is InputError else "written"),
            where=url,
            got=f"{type(error).__name__}: {said[0] if said else 'no word'}",
            do="check the path, the credentials and the network, then start again",
        ) from error


def _remedy(url: str) -> str:
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0].rpartition("::")[2]
    package = known_implementations[scheme]["class"].partition(".")[0]
    return "install the package that is named" if package == "fsspec" else f"pip install {package}"
