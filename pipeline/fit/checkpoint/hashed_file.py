"""A file whose SHA-256 is known when it is written: nothing is read again for it.

``torch.save`` takes any object with ``write``. safetensors writes to a path alone, so its format
(https://github.com/huggingface/safetensors#format) is written here: the bytes are those that
``safetensors.torch.save_file`` writes. That one also makes files that their owner alone can read.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch

from pipeline.console.progress import advance
from pipeline.store.seals import FileSeal

Seals = dict[str, FileSeal]
"""Size and hash of files, by name."""
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the library's order: large elements first, so that each tensor lies aligned."""


class HashedFile:
    """A new file to write into; on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self._file, self._digest, self._size = path.open("wb"), hashlib.sha256(), 0
        self._hashing = ThreadPoolExecutor(1, "hashing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            self._hashing.shutdown()

    def write(self, data: Any) -> int:
        """Write bytes; another thread hashes them meanwhile, as neither wants the interpreter."""
        hashed = self._hashing.submit(self._digest.update, data)
        written = self._file.write(data)
        hashed.result()
        self._size += written
        advance(written)
        return written

    def flush(self) -> None:
        """Hand over to the system what is buffered; ``torch.save`` calls it."""
        self._file.flush()

    def seal(self) -> FileSeal:
        """Return what tells the file from a damaged one."""
        return FileSeal(self._size, self._digest.hexdigest())


def write_hashed(folder: Path, writers: Mapping[str, Callable[[HashedFile], object]]) -> Seals:
    """Write files into a folder, each by what is given for its name."""
    seals = {}
    for name, write in writers.items():
        with HashedFile(folder / name) as file:
            write(file)
        seals[name] = file.seal()
    return seals


def weight_writers(
    files: Mapping[str, Sequence[str]], tensors: Mapping[str, torch.Tensor]
) -> dict[str, Callable[[HashedFile], object]]:
    """Return what writes each file of weights, given the names of those in it."""
    return {
        file: functools.partial(write_safetensors, {name: tensors[name] for name in names})
        for file, names in files.items()
    }


def write_safetensors(tensors: Mapping[str, torch.Tensor], file: HashedFile) -> None:
    """Write tensors in the format of safetensors."""
    order = list(_DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        entry = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = entry | {"data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        if tensors[name].nbytes:
            flat = tensors[name].cpu().contiguous().view(-1).view(torch.uint8)
            file.write(flat.numpy().data)
