"""Where a model's config names its sizes: in itself, or in a config of each side; without torch."""

from typing import Any


def side_config(config: Any, side: str) -> Any:
    """Return what holds the settings of a model's ``encoder`` or ``decoder``, text's own."""
    own = getattr(config, side, None) or config
    return getattr(own, "text_config", None) or own


def vocabulary_rows(config: Any) -> int:
    """Return the rows of the output matrix that a config describes."""
    rows: int = side_config(config, "decoder").vocab_size
    return rows


def set_vocabulary_rows(config: Any, rows: int) -> None:
    """Let a config, and those in it, describe matrices of so many rows."""
    for each in (config, side_config(config, "encoder"), side_config(config, "decoder")):
        each.vocab_size = rows
