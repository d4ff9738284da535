"""Sizes and hashes of files, in a JSON object that vouches for itself: what `duet verify` reads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.json_object import read_json_object
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
    """Return an object as JSON; its last entry, ``checksum``, is the SHA-256 of it without that."""
    return _with_checksum(json.dumps(fields, indent=2, ensure_ascii=False, default=asdict))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return the object that `sealed_json` made, without its checksum.

    Raises:
        OSError: There is no such file, or it may not be read.
        ValueError: It is not as it was written.
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
