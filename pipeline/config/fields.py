"""How a setting is written down: its default, its help and its bounds, in one place.

The command line, the reference page and the checks are made from these fields; what two settings
say together stands in ``check`` of their class.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pipeline.errors import ConfigError

REQUIRED: Any = dataclasses.MISSING
"""In the place of a default: there is none."""
_OUT_OF_RANGE = "a setting is out of range"


class Bound(NamedTuple):
    """What a value must be."""

    holds: Callable[[Any], bool]
    do: str
    """What to give, for the one who gave something else."""
    what: str = _OUT_OF_RANGE
    schema: Mapping[str, Any] | None = None
    """The same in JSON Schema's words, where it has them."""


def at_least(low: int, *, off: int | None = None, do: str = "") -> Bound:
    """Return the bound of a count; ``off`` is one more value that is allowed."""
    schema = {"minimum": low if off is None else min(low, off)}
    return Bound(
        lambda value: value >= low or value == off, do or f"give {low} or more", schema=schema
    )


def at_most(high: int) -> Bound:
    """Return the bound of a value that is ``high`` or less."""
    return Bound(lambda value: value <= high, f"give {high} or less", schema={"maximum": high})


def above(low: float) -> Bound:
    """Return the bound of a value that is more than ``low``."""
    return Bound(
        lambda value: value > low, f"give more than {low}", schema={"exclusiveMinimum": low}
    )


def below(high: int) -> Bound:
    """Return the bound of a value that is less than ``high``."""
    return Bound(
        lambda value: value < high, f"give less than {high:,}", schema={"exclusiveMaximum": high}
    )


def share(*, one: bool = True) -> Bound:
    """Return the bound of a share, from 0 up to 1; with or without 1 itself."""
    if one:
        schema = {"minimum": 0.0, "maximum": 1.0}
        return Bound(lambda value: 0 <= value <= 1, "give 0 to 1", schema=schema)
    return Bound(
        lambda value: 0 <= value < 1,
        "give 0 or more, and less than 1",
        schema={"minimum": 0.0, "exclusiveMaximum": 1.0},
    )


def is_url(path: str) -> bool:
    """Return whether a path names its file system: ``s3://bucket/chats.json``."""
    return "://" in path


NAMED = Bound(bool, "name one, it is empty")
"""Of what must not be empty."""
_NOT_LOCAL = "a URL where a folder on this machine is needed"
LOCAL_INPUTS = Bound(
    lambda paths: not any(map(is_url, paths)),
    "copy it to this machine first, and give the copy",
    _NOT_LOCAL,
)
LOCAL_OUTPUT = Bound(
    lambda path: not is_url(path),
    "give a folder on this machine, and copy it when all is done",
    _NOT_LOCAL,
)
_FINITE = Bound(math.isfinite, "give a finite number")


def option(
    default: Any = REQUIRED,
    *bounds: Bound,
    help: str,
    positional: bool = False,
    secret: bool = False,
) -> Any:
    """Make a field of a settings class, with the help that a user reads.

    Args:
        default: None: the setting may be left out, and its bounds hold for what is given.
        bounds: What the value must be.
        help: One or two sentences.
        positional: Whether it is given without a flag.
        secret: Whether its value is left out where the settings are printed or written down.
    """
    metadata = {"help": help, "positional": positional, "bounds": bounds, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def flag(name: str) -> str:
    """Return the flag of a field: ``eval_fraction`` is ``--eval-fraction``."""
    return "--" + name.replace("_", "-")


def key_of_field(name: str) -> str:
    """Return a field's key in a file of settings: its flag, without the dashes before it."""
    return flag(name)[2:]


def required_first(config_class: type[Any]) -> list["dataclasses.Field[Any]"]:
    """Return the fields of a settings class, those that must be given before the others."""
    return sorted(
        dataclasses.fields(config_class), key=lambda f: f.default is not dataclasses.MISSING
    )


def require(ok: bool, name: str, got: object, do: str) -> None:
    """Refuse what a setting cannot be beside the others.

    Raises:
        ConfigError: ``ok`` is False.
    """
    if not ok:
        raise ConfigError(_OUT_OF_RANGE, where=flag(name), got=got, do=do)


def parse_kwargs(text: str, name: str) -> dict[str, Any]:
    """Return the values of a setting that is JSON of an object, or ``NAME=VALUE`` with commas.

    Raises:
        ConfigError: It is neither.

    >>> parse_kwargs("min_lr_rate=0.1, decay_type=cosine", "lr_scheduler_kwargs")
    {'min_lr_rate': 0.1, 'decay_type': 'cosine'}
    """
    do = 'give JSON, {"min_lr_rate": 0.1}, or min_lr_rate=0.1'
    if text.lstrip().startswith("{"):
        try:
            values: dict[str, Any] = json.loads(text)
        except ValueError:
            values = {}
        require(bool(values), name, text, do)
        return values
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    require(all(key.strip() and equals for key, equals, _ in pairs), name, text, do)
    return {key.strip(): _json_or_text(value.strip()) for key, _, value in pairs}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of all settings: text of each path, each value in its bounds, then ``check``."""

    takes_trainer_flags: ClassVar[bool] = False
    """Whether flags of the Hugging Face trainer that are none of its own are known."""

    def __post_init__(self) -> None:
        """Raise ConfigError for the first setting that cannot be."""
        for f in dataclasses.fields(self):
            value = _plain(getattr(self, f.name), is_tuple=str(f.type).startswith("tuple"))
            object.__setattr__(self, f.name, value)
            bounds = f.metadata["bounds"] + ((_FINITE,) if isinstance(value, float) else ())
            for bound in () if value is None else bounds:
                if not bound.holds(value):
                    leave = ", or leave it out" if f.default is None else ""
                    got = "nothing" if value in ("", ()) else value
                    raise ConfigError(bound.what, where=flag(f.name), got=got, do=bound.do + leave)
        self.check()

    def check(self) -> None:
        """Refuse what the settings say together."""


def _plain(value: Any, *, is_tuple: bool) -> Any:
    """Return text for a Path, and a tuple for one path or a list of them."""
    if isinstance(value, Path):
        value = str(value)
    if is_tuple:
        return (value,) if isinstance(value, str) else tuple(map(str, value))
    return value


def shared_values(config: Any, kind: type[Any]) -> dict[str, Any]:
    """Return the values of ``config`` for the fields that ``kind`` has too."""
    return {
        f.name: getattr(config, f.name) for f in dataclasses.fields(kind) if hasattr(config, f.name)
    }
