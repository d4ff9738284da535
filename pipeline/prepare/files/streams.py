"""A file's bytes: a stretch of them as they are, or all of them, unpacked and as UTF-8."""

import bz2
import codecs
import contextlib
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from pipeline.store.remote import AnyPath, open_binary, range_reader, unreadable

BOM = codecs.BOM_UTF8
# Small pieces in: when a piece is damaged, all that was unpacked before it is already out.
_PIECE = 1 << 10
_CHUNK = 1 << 20
_RANGE = 1 << 23  # of a remote file, in one request

_LONGEST_WINDOW = 1 << 31  # of zstd, as `zstd --ultra --long=31` writes it


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW).decompressobj()


_UNPACKERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x28\xb5\x2f\xfd": _zstd,
    # Frames that are skipped: pzstd writes one before each of data.
    **{bytes([first]) + b"\x2a\x4d\x18": _zstd for first in range(0x50, 0x60)},
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
}
_DAMAGED = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError)
# UTF-32's little-endian mark begins with UTF-16's.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class BrokenStreamError(Exception):
    """The bytes end too early or cannot be unpacked; what came before is whole."""


def is_packed(head: bytes) -> bool:
    """Return whether a file that begins so has to be unpacked, or decoded, from its start."""
    return head.startswith((*_UNPACKERS, *_ENCODINGS))


def read_range(path: AnyPath, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes of a file from ``start`` up to ``end``, or to where it ends.

    Raises:
        InputError: They cannot be read.
    """
    size = _CHUNK if isinstance(path, Path) else _RANGE
    with reading_at(path) as read_at:
        while start < end and (chunk := read_at(start, min(size, end - start))):
            start += len(chunk)
            yield chunk


@contextlib.contextmanager
def reading_at(path: AnyPath) -> Iterator[Callable[[int, int], bytes]]:
    """Open a file, to read at any place of it: yield a function of an offset and a size.

    Raises:
        InputError: It cannot be read.
    """
    try:
        if not isinstance(path, Path):
            yield range_reader(path)
            return
        with path.open("rb", buffering=0) as file:  # read in large pieces, and each once

            def read_at(start: int, size: int) -> bytes:
                file.seek(start)
                found = file.read(size)
                while len(found) < size and (more := file.read(size - len(found))):
                    found += more
                return found

            yield read_at
    except OSError as error:
        raise unreadable(path, error) from error


def read_text(path: AnyPath) -> Iterator[bytes]:
    """Yield a file's text as UTF-8 without a mark: unpacked if it is gzip, zstd, xz or bz2.

    Raises:
        BrokenStreamError: After the last byte that can be read, where the stream is cut or damaged.
        InputError: The file cannot be read.
    """
    with open_binary(path) as file:
        yield from as_utf8(_unpacked(file, path))


def _unpacked(file: BinaryIO, path: AnyPath) -> Iterator[bytes]:
    head = file.read(max(map(len, _UNPACKERS)))
    file.seek(0)
    unpacker = next((make for magic, make in _UNPACKERS.items() if head.startswith(magic)), None)
    if unpacker is None:
        try:
            while chunk := file.read(_CHUNK):
                yield chunk
        except OSError as error:
            raise unreadable(path, error) from error
        return
    out, size = list[bytes](), 0
    try:
        for piece in _unpack(file, unpacker):
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


def as_utf8(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a text without its byte-order mark; one in UTF-16 or UTF-32 is decoded."""
    chunks = iter(chunks)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= max(map(len, _ENCODINGS)):
            break
    encoding = next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), None)
    if encoding is None:
        yield head.removeprefix(BOM)
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(head).encode("utf-8", "replace")
    for chunk in chunks:
        if text := decoder.decode(chunk):
            yield text.encode("utf-8", "replace")


def _unpack(file: BinaryIO, make: Callable[[], Any]) -> Iterator[bytes]:
    unpacker, started = make(), False
    while piece := file.read(_PIECE):
        while piece:
            if not started:  # gzip allows zeros between and after its members
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
