"""Which settings decide the rows: what a fingerprint is made of, beside the records."""

from dataclasses import dataclass
from typing import Any

from pipeline.config import PrepareOptions
from pipeline.prepare.read.html import html_version


def row_options(config: PrepareOptions) -> dict[str, Any]:
    """Return what decides the rows, as the fingerprint and the manifest have it."""
    # Where nobody asked for one, the tokenizer's fingerprint says which template made the rows.
    asked = {} if config.chat_template == "auto" else {"chat_template": config.chat_template}
    return asked | {
        "model_max_length": config.model_max_length,
        "max_target_length": config.target_length,
        "eval_fraction": config.eval_fraction,
        "train_turns": config.train_turns,
        "join_parts": config.join_parts,
        "dedup": config.dedup,
        "role": config.extra_roles(),
        "clean_html": html_version() if config.clean_html else None,
    }


@dataclass(frozen=True, slots=True)
class EncodingInfo:
    """How segments are encoded, for a process that only puts together what others encode."""

    key: str
    """Names all that decides it, the versions of the libraries that write the bytes among it."""
    tokenizer_fingerprint: str
    vocab_size: int
    is_rendered: bool
    """Whether the model's own chat template makes the encoder's text."""
    template_changes: str
    """What that one does not take as it is."""
    versions: dict[str, str]
    """Of this program and of those libraries."""
