"""JSON as all that is read here has it: an object."""

import json
from pathlib import Path
from typing import Any


def read_json_object(source: Path | bytes | str) -> dict[str, Any]:
    """Return the object that a file, or a text, holds as JSON.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no JSON, or something else than an object.

    >>> read_json_object('{"d_model": 768}')
    {'d_model': 768}
    """
    try:
        value = json.loads(source.read_bytes() if isinstance(source, Path) else source)
    except UnicodeDecodeError as error:  # its repr holds the whole file
        raise ValueError(str(error)) from error
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    return value
