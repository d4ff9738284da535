"""Where a model's config names its sizes: in itself, or in a config of each side; without torch."""

from typing import Any

UNLIMITED = 1 << 30
"""Positions of a model that computes them, or whose attention is relative, as T5's is."""
_FIXED = frozenset(
    {
        *("bart", "mbart", "mvp", "plbart", "pegasus", "bigbird_pegasus", "marian"),
        *("blenderbot", "blenderbot-small"),
    }
)
"""Kinds that have a row for each position, for the encoder as many as for the decoder."""


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


def most_positions(config: Any) -> tuple[int, int]:
    """Return the most tokens that a model's encoder and its decoder have positions for."""
    if config.model_type == "led":
        return config.max_encoder_position_embeddings, config.max_decoder_position_embeddings
    if config.model_type == "prophetnet":
        # Counted from the id after the padding's; the last one predicts from the next position,
        # and on a GPU rows are padded to multiples of 8.
        return UNLIMITED, (config.max_position_embeddings - (config.pad_token_id or 0) - 2) // 8 * 8
    if config.model_type in _FIXED:
        return config.max_position_embeddings, config.max_position_embeddings
    return UNLIMITED, UNLIMITED
