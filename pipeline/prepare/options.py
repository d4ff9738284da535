"""Which settings decide the rows: what a fingerprint is made of, beside the records."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.config import PrepareConfig, PrepareOptions
from pipeline.conversation import Role
from pipeline.prepare.read.html import html_version
from pipeline.prepare.read.records import roles_with
from pipeline.store.chunk_cache import CHUNK_SCHEMA
from pipeline.store.fingerprint import key_of
from pipeline.tokenizer import TextTokenizer, load_tokenizer


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
class EncodingSettings:
    """All that decides how segments become chunks."""

    tokenizer: TextTokenizer
    model_max_length: int
    target_length: int
    eval_fraction: float
    last_turn_only: bool = False
    roles: dict[str, Role] = field(default_factory=dict)
    join_parts: bool = True
    dedup: bool = True
    clean_html: bool = False
    key: str = ""
    """Names these settings, and the versions of the libraries that write the bytes."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of this program and of those libraries."""


def load_settings(config: PrepareConfig) -> EncodingSettings:
    """Load the tokenizer; return what decides how segments become chunks.

    Raises:
        ModelError, TokenizerError: It cannot be loaded.
    """
    from importlib.metadata import version  # late: a process that is given the settings needs none

    tokenizer = load_tokenizer(config.model_name_or_path, config.cache_dir, config.chat_template)
    versions = {name: version(name) for name in ("duet-t5", "tokenizers", "pyarrow")}
    # The libraries that write the bytes belong to the key: a chunk is what would be made now.
    libraries = [versions[name] for name in ("pyarrow", "tokenizers")]
    return EncodingSettings(
        tokenizer,
        config.model_max_length,
        config.target_length,
        config.eval_fraction,
        last_turn_only=config.train_turns == "last",
        roles=roles_with(config.extra_roles()),
        join_parts=config.join_parts,
        dedup=config.dedup,
        clean_html=config.clean_html,
        key=key_of(row_options(config), tokenizer.fingerprint, CHUNK_SCHEMA, libraries),
        versions=versions,
    )
