"""All that decides how segments become chunks: the tokenizer, and the options that concern rows."""

from dataclasses import dataclass
from importlib.metadata import version

from pipeline.config import PrepareConfig
from pipeline.conversation import Role
from pipeline.prepare.options import EncodingInfo, row_options
from pipeline.prepare.read.records import roles_with
from pipeline.store.chunk_cache import CHUNK_SCHEMA
from pipeline.store.fingerprint import key_of
from pipeline.tokenizer import TextTokenizer, load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingSettings:
    """What an encoder of segments uses."""

    tokenizer: TextTokenizer
    model_max_length: int
    target_length: int
    eval_fraction: float
    last_turn_only: bool
    roles: dict[str, Role]
    join_parts: bool
    dedup: bool
    clean_html: bool
    info: EncodingInfo


def load_settings(config: PrepareConfig) -> EncodingSettings:
    """Load the tokenizer; return what decides how segments become chunks.

    Raises:
        ModelError, TokenizerError: It cannot be loaded.
    """
    tokenizer = load_tokenizer(config.model_name_or_path, config.cache_dir, config.chat_template)
    versions = {name: version(name) for name in ("duet-t5", "tokenizers", "pyarrow")}
    # The libraries that write the bytes belong to the key: a chunk is what would be made now.
    libraries = [versions[name] for name in ("pyarrow", "tokenizers")]
    info = EncodingInfo(
        key=key_of(row_options(config), tokenizer.fingerprint, CHUNK_SCHEMA, libraries),
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        is_rendered=tokenizer.template is not None,
        template_changes=tokenizer.template.changes if tokenizer.template is not None else "",
        versions=versions,
    )
    return EncodingSettings(
        tokenizer=tokenizer,
        model_max_length=config.model_max_length,
        target_length=config.target_length,
        eval_fraction=config.eval_fraction,
        last_turn_only=config.train_turns == "last",
        roles=roles_with(config.extra_roles()),
        join_parts=config.join_parts,
        dedup=config.dedup,
        clean_html=config.clean_html,
        info=info,
    )
