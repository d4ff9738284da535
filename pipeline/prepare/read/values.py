"""What stands in a record: texts, JSON in strings, and what is wrong where it is none of these."""

import json
import re
from typing import Any, TypeGuard

from pipeline.prepare.files.elements import DECODER, NumberText

_SURROGATES = re.compile("[\ud800-\udfff]")
_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'")
_NOT_TEXT = re.compile("image|audio|video|file|document", re.IGNORECASE)


class RejectedError(Exception):
    """A record that is no conversation: ``reason`` names the kind, ``detail`` the place."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep both."""
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def wrong_shape(detail: str) -> RejectedError:
    """Return the error of a value that should be another."""
    return RejectedError("wrong_shape", detail)


def not_text(where: str, what: str) -> RejectedError:
    """Return the error of a record that holds images, audio or other files."""
    return RejectedError("not_text", f"{where} is not text alone: {what}")


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether a value is a JSON string; a number as it was written is none."""
    return isinstance(value, str) and not isinstance(value, NumberText)


def kind_of(value: Any) -> str:
    """Return the JSON name of a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float, NumberText)):
        return "a number"
    return {"str": "a string", "list": "a list", "dict": "an object"}.get(
        type(value).__name__, type(value).__name__
    )


def clean(text: str) -> str:
    r"""Return a text with CRLF as LF and lone surrogates as U+FFFD; nothing else is touched.

    >>> clean("a\r\nb\rc")
    'a\nb\rc'
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")  # far faster than a search for surrogates
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)
    return text


def text_of(value: Any, where: str) -> str:
    """Return a text, or the parts of one joined with nothing between.

    Args:
        value: A string, or a list of strings and of ``{"type": "text", "text"}``.
        where: Names its place in messages.

    Raises:
        RejectedError: It is neither, or holds an image or the like.
    """
    if is_text(value):
        return value
    if not isinstance(value, list):
        raise wrong_shape(f"{where} is a string, not {kind_of(value)}")
    return "".join(_part(part, where) for part in value)


def _part(part: Any, where: str) -> str:
    if is_text(part):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and is_text(part.get("text")):
        return str(part["text"])
    if isinstance(kind, str) and _NOT_TEXT.search(kind):
        raise not_text(where, kind[:80])
    raise wrong_shape(f'a part of {where} is no {{"type": "text", "text"}}')


def parsed(value: Any, what: str) -> Any:
    """Return what a JSON text holds; any other value as it is.

    Raises:
        RejectedError: A string is no JSON.
    """
    if not is_text(value):
        return value
    try:
        return DECODER.decode(value)
    except RecursionError as error:
        raise wrong_shape("nested too deep") from error
    except ValueError as error:
        if _PYTHON_LIST.match(value):
            raise wrong_shape(f"{what} in a string of Python; write them as JSON") from error
        raise wrong_shape(f"{what} in a string that is not JSON") from error


def json_line(value: Any, what: str) -> str:
    """Return a value as one line of JSON, as ``json.dumps(value, ensure_ascii=False)`` gives it.

    Raises:
        RejectedError: It cannot be one.
    """
    try:
        return clean(json.dumps(plain(value), ensure_ascii=False))
    except RecursionError as error:
        raise wrong_shape(f"{what}: nested too deep") from error
    except (TypeError, ValueError) as error:
        raise wrong_shape(f"{what}: no JSON: {error}") from error


def plain(value: Any) -> Any:
    """Return a value with its numbers as Python has them."""
    if isinstance(value, NumberText):
        return float(value) if any(c in ".eE" for c in value) else int(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
