"""JSON objects with a checksum, and the sizes and hashes of files that such objects hold.

What people and ``duet verify`` read has its checksum as the last entry; what caches keep is compact
and stands after it.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.json_object import read_json_object
from pipeline.store.atomic import write_file
from pipeline.store.fingerprint import sha256_of_file, sha256_of_text

_CHECKSUM = ',\n  "checksum": '


@dataclass(frozen=True, slots=True)
class FileSeal:
    """What tells a file from a damaged one."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileSeal":
        """Return the seal of a file as it is."""
        return cls(path.stat().st_size, sha256_of_file(path))


def sealed_json(fields: Mapping[str, Any]) -> str:
    """Return an object as JSON; its last entry, ``checksum``, is the SHA-256 of it without that.

    Each entry has a line, and so has what is in it: ``json`` itself would give one to each number.
    Names are texts.
    """
    lines = ",\n".join(f"  {_dumps(name)}: {_lines_of(value)}" for name, value in fields.items())
    return _with_checksum(f"{{\n{lines}\n}}")


def _lines_of(value: Any) -> str:
    if isinstance(value, dict) and value:
        inner = (f"{_dumps(name)}: {_dumps(entry)}" for name, entry in value.items())
        return "{\n    " + ",\n    ".join(inner) + "\n  }"
    if isinstance(value, list) and value:
        return "[\n    " + ",\n    ".join(map(_dumps, value)) + "\n  ]"
    return _dumps(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=asdict)


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return the object that `sealed_json` made, without its checksum.

    Raises:
        OSError: There is no such file, or it may not be read.
        ValueError: It was changed after it was written.
    """
    text = path.read_bytes().decode()
    body, found, _ = text.rpartition(_CHECKSUM)
    if not found or _with_checksum(f"{body}\n}}") != text:
        raise ValueError("another checksum" if found else "no checksum")
    return read_json_object(f"{body}\n}}")


def _with_checksum(text: str) -> str:
    return f'{text[:-2]}{_CHECKSUM}"{sha256_of_text(text)}"\n}}\n'


def find_difference(folder: Path, seals: Mapping[str, FileSeal]) -> tuple[Path, str] | None:
    """Return the first file of a folder that is not as its seal says, and what was found."""
    for name, seal in sorted(seals.items()):
        found = FileSeal.of(folder / name) if (folder / name).is_file() else None
        if found != seal:
            got = f"SHA-256 {found.sha256}, not {seal.sha256}" if found else "no such file"
            return folder / name, got
    return None


def write_checked(path: Path, fields: dict[str, Any]) -> None:
    """Write a JSON object, after the SHA-256 of its text, as ``write_file`` does.

    It does not wait for the disk, as what a crash of the machine spoils is noticed.

    Raises:
        OutputError: It cannot be written.
    """
    body = json.dumps(fields, ensure_ascii=False)
    write_file(path, f"{sha256_of_text(body)}\n{body}", is_durable=False)


def read_checked(path: Path) -> dict[str, Any] | None:
    """Return what was written, or None where the file is not there or not whole."""
    with contextlib.suppress(OSError, ValueError):
        written, _, body = path.read_text(encoding="utf-8").partition("\n")
        if written == sha256_of_text(body):
            return read_json_object(body)
    return None
