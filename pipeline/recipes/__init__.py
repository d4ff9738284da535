"""Settings that ship, as files of ``--config``: ``duet train --config flan-t5-base``."""

from pathlib import Path

_SUFFIX = ".yaml"


def recipe_names() -> list[str]:
    """Return the names that ``--config`` takes in place of a path."""
    return sorted(path.stem for path in Path(__file__).parent.glob(f"*{_SUFFIX}"))


def recipe_path(name: str) -> Path | None:
    """Return the file of a recipe, with or without its suffix; None if there is none.

    >>> recipe_path("flan-t5-base").name, recipe_path("flan-t6")
    ('flan-t5-base.yaml', None)
    """
    name = name.removesuffix(_SUFFIX)
    return Path(__file__).parent / (name + _SUFFIX) if name in recipe_names() else None
