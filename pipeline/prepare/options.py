"""Which settings decide the rows: what a fingerprint is made of, beside the records."""

from typing import Any

from pipeline.config import PrepareOptions
from pipeline.prepare.read.html import html_version


def row_options(config: PrepareOptions) -> dict[str, Any]:
    """Return what decides the rows, as the fingerprint and the manifest have it."""
    return {
        "model_max_length": config.model_max_length,
        "max_target_length": config.target_length,
        "eval_fraction": config.eval_fraction,
        "train_turns": config.train_turns,
        "join_parts": config.join_parts,
        "dedup": config.dedup,
        "role": config.extra_roles(),
        "clean_html": html_version() if config.clean_html else None,
    }
