"""One JSON value: how it is decoded, and how a text looks that ends inside one."""

import json
import re
from typing import NoReturn

from pipeline.prepare.found import NumberText


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


DECODER = json.JSONDecoder(
    parse_int=NumberText, parse_float=NumberText, parse_constant=_refuse_constant
)

# What a number, a word or an escape looks like when the text ends inside it.
_BEGUN = re.compile(
    r"[-+.0-9eE]*|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?|N(?:a)?|-?I(?:nfinit?)?|[\\u0-9a-fA-F]{1,11}"
)
LONGEST_BEGUN = 64
"""In characters: where a fault is nearer to the end, more text might mend it."""


def ends_early(error: json.JSONDecodeError) -> bool:
    """Tell whether a fault is that the text ends inside a value."""
    # "Unterminated string" points at the string's start, any other fault at its own place.
    rest = error.doc[error.pos : error.pos + LONGEST_BEGUN].rstrip(" \t\n\r")
    return error.msg.startswith("Unterminated") or _BEGUN.fullmatch(rest) is not None
