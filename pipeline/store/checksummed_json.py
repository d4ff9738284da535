"""JSON files behind a checksum: one that is damaged reads as one that is not there."""

import contextlib
import json
from pathlib import Path
from typing import Any

from pipeline.json_object import read_json_object
from pipeline.store.atomic import write_file
from pipeline.store.fingerprint import sha256_of_text


def write_checked(path: Path, fields: dict[str, Any]) -> None:
    """Write a JSON object, behind the SHA-256 of its text, as ``write_file`` does.

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
