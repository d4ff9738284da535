"""What a setting's type says: a number, a switch, one of some words, a text, or a list of texts."""

import types
import typing
from typing import Any, Literal, NamedTuple

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Kind(NamedTuple):
    """The type of a setting, whether or not it may be left out."""

    base: type[Any]
    """int, float, bool or str; of a list, that of its elements."""
    choices: tuple[str, ...] = ()
    """The words that it may be; empty: any."""
    is_list: bool = False

    def __str__(self) -> str:
        """Return what to give, in words.

        >>> str(Kind(float)), str(Kind(str, ("no", "steps"))), str(Kind(str, is_list=True))
        ('a number', 'one of no, steps', 'a text, or a list of texts')
        """
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return "a text, or a list of texts" if self.is_list else _NAMES[self.base]

    def parse(self, text: str) -> Any:
        """Return the value that a text says, of no switch.

        Raises:
            ValueError: It is of another kind.
        """
        if self.choices and text not in self.choices:
            raise ValueError(text)
        return self.base(text)


def kinds_of(config_class: type[Any]) -> dict[str, Kind]:
    """Return the kind of each field of a settings class, by its name."""
    return {name: _kind(hint) for name, hint in typing.get_type_hints(config_class).items()}


def _kind(hint: Any) -> Kind:
    """Return the kind of a type hint.

    >>> _kind(int | None) == Kind(int), _kind(tuple[str, ...]) == Kind(str, is_list=True)
    (True, True)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (given,) = (arg for arg in args if arg is not type(None))
        return _kind(given)
    if origin is Literal:
        return Kind(str, args)
    if origin is tuple:
        return Kind(args[0], is_list=True)
    return Kind(hint)
