"""What a file is, by its content and never by its suffix; and its bytes, unpacked, as a stream."""

import bz2
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

import zstandard

from pipeline.errors import InputError
from pipeline.store.remote import AnyPath

Format = Literal["json", "jsonl", "parquet"]

BOM = b"\xef\xbb\xbf"
_SNIFF = 1 << 16
# Small pieces in: when a piece is damaged, all that was unpacked before it is already out.
_PIECE = 1 << 10
_CHUNK = 1 << 20

_UNPACKERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x28\xb5\x2f\xfd": lambda: zstandard.ZstdDecompressor().decompressobj(),
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
}
_DAMAGED = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError)


class BrokenStreamError(Exception):
    """The bytes end too early or cannot be unpacked; what came before is whole."""


def looks_like_records(path: AnyPath) -> bool:
    """Tell whether a file found in a folder is one of records: JSON, JSON Lines or Parquet."""
    head = _head(path)
    return head.startswith(b"PAR1") or head.removeprefix(BOM).lstrip()[:1] in (b"[", b"{")


def format_of(path: AnyPath) -> Format:
    """Return what a file's content is; text that is no JSON array is read line by line."""
    head = _head(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    return "json" if head.removeprefix(BOM).lstrip()[:1] == b"[" else "jsonl"


def open_file(path: AnyPath) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: It cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            "a file cannot be read",
            where=path,
            got=error.strerror or error,
            do="check the path and its permissions",
        ) from error


class Content:
    """A file's content, unpacked; a plain file on this machine can be read from any byte on.

    Args:
        file: The open file, at its start.
        advance: Hears of the bytes read, as they stand in the file.
    """

    def __init__(self, file: BinaryIO, advance: Callable[[int], None] = lambda _: None) -> None:
        """Look at the first bytes."""
        self._file, self._advance, self._reached = file, advance, 0
        self.has_places = _is_local(file) and _unpacker_of(file) is None

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Yield the content from a byte on; other than the first only where there are places.

        Raises:
            BrokenStreamError: As ``read_bytes`` does.
        """
        if not self.has_places:
            yield from read_bytes(self._file, self._advance)
            return
        while chunk := self.at(start, _CHUNK):
            start += len(chunk)
            self._advance(max(start - self._reached, 0))
            self._reached = max(start, self._reached)
            yield chunk

    def at(self, start: int, size: int) -> bytes:
        """Return the bytes at a place; fewer where the file ends.

        Raises:
            InputError: They cannot be read.
        """
        try:
            return os.pread(self._file.fileno(), size, start)
        except OSError as error:
            raise _unreadable(self._file, error) from error

    def mark(self, start: int, reach: int) -> bytes:
        """Return some bytes from a place on, by which it is told from most others.

        Records may all begin alike, so these are not only the first ones.
        """
        return self.at(start, 256) + self.at(start + reach // 8, 64) + self.at(start + reach, 64)

    def sha256(self, start: int, size: int) -> str:
        """Return the SHA-256 of some bytes that stand at a place."""
        digest, end = hashlib.sha256(), start + size
        while start < end and (chunk := self.at(start, min(1 << 20, end - start))):
            digest.update(chunk)
            start += len(chunk)
        return digest.hexdigest()


def read_bytes(file: BinaryIO, advance: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """Yield a file's content in chunks, unpacked if it is gzip, zstd, xz or bz2.

    Args:
        file: The open file, at its start.
        advance: Hears of the bytes read, as they stand in the file.

    Raises:
        BrokenStreamError: After the last byte that can be had, where the stream is cut or damaged.
    """
    unpacker = _unpacker_of(file)
    if unpacker is None:
        while chunk := _read(file):
            advance(len(chunk))
            yield chunk
        return
    out, size = [], 0
    try:
        for piece in _unpack(file, unpacker, advance):
            out.append(piece)
            size += len(piece)
            if size >= _CHUNK:
                yield b"".join(out)
                out, size = [], 0
    except _DAMAGED as error:
        # An empty chunk would read as the end.
        if size:
            yield b"".join(out)
        raise BrokenStreamError(str(error)) from error
    if size:
        yield b"".join(out)


def _is_local(file: BinaryIO) -> bool:
    return isinstance(getattr(file, "raw", None), io.FileIO)


def _unpacker_of(file: BinaryIO) -> Callable[[], Any] | None:
    head = file.read(max(map(len, _UNPACKERS)))
    file.seek(0)
    return next((make for magic, make in _UNPACKERS.items() if head.startswith(magic)), None)


def _read(file: BinaryIO) -> bytes:
    try:
        return file.read(_CHUNK)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: BinaryIO, error: OSError) -> InputError:
    return InputError(
        "a file cannot be read",
        where=file.name,
        got=error.strerror or error,
        do="check the disk it is on",
    )


def _unpack(
    file: BinaryIO, make: Callable[[], Any], advance: Callable[[int], None]
) -> Iterator[bytes]:
    unpacker, started = make(), False
    while piece := file.read(_PIECE):
        advance(len(piece))
        while piece:
            if not started:  # gzip allows zeros between and behind its members
                piece = piece.lstrip(b"\x00")
            started = started or bool(piece)
            yield from _unpack_piece(unpacker, piece)
            if not unpacker.eof:
                break
            piece = unpacker.unused_data
            unpacker, started = make(), False
    if started:
        raise EOFError("the compressed data are cut off")


def _unpack_piece(unpacker: Any, piece: bytes) -> Iterator[bytes]:
    """Yield what a piece unpacks to; of a damaged one, all before the damage."""
    spare: Any = unpacker.copy() if hasattr(unpacker, "copy") else None  # zlib's can be copied
    try:
        yield unpacker.decompress(piece)
    except _DAMAGED:
        for i in range(len(piece) if spare is not None else 0):
            try:
                yield spare.decompress(piece[i : i + 1])
            except _DAMAGED:
                break
        raise


def _head(path: AnyPath) -> bytes:
    """Return the first bytes of the content, unpacked, as far as they can be had."""
    head = b""
    with open_file(path) as file:
        try:
            for chunk in read_bytes(file):
                head += chunk
                text = head.removeprefix(BOM).strip() if len(head) > len(BOM) else b""
                if text or len(head) >= _SNIFF:
                    break
        except BrokenStreamError:
            pass
    return head[:_SNIFF]
