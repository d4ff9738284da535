"""Settings of the first stage: what decides the rows."""

from dataclasses import dataclass
from typing import Literal

from pipeline.config.fields import (
    NAMED,
    REQUIRED,
    Bound,
    Settings,
    at_least,
    is_url,
    option,
    require,
    share,
)
from pipeline.errors import ConfigError

RoleName = Literal["human", "assistant", "system", "tool"]
ROLE_NAMES: tuple[RoleName, ...] = ("human", "assistant", "system", "tool")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Settings):
    """What decides the rows of a prepared folder."""

    model_max_length: int = option(
        2048,
        at_least(64, do="give 64 or more: the header and both tags must fit"),
        help="Maximum sequence length of encoder and decoder, in tokens with </s>; 64 or more.",
    )
    max_target_length: int | None = option(
        None,
        at_least(1),
        help="Maximum length of the decoder sequence, in tokens. Default: --model-max-length.",
    )
    eval_fraction: float = option(
        0.0,
        share(one=False),
        help="Share of the conversations that become the split eval, by a hash of their id.",
    )
    join_parts: bool = option(
        True, help="Join the parts that a long conversation was cut into (ids BASE_N)."
    )
    dedup: bool = option(True, help="Leave out exact repeats of an earlier conversation.")
    train_turns: Literal["all", "last"] = option(
        "all", help="Which answers of a conversation become pairs: all, or the last one alone."
    )
    clean_html: bool = option(
        False, help="Convert texts of sharegpt.com's pages from HTML to Markdown."
    )
    role: tuple[str, ...] = option(
        (), help="One more speaker name, NAME=human|assistant|system|tool. Repeatable."
    )
    num_workers: int | None = option(
        None,
        at_least(1),
        help="Processes that tokenize, this one among them. Default: one for each core.",
    )
    engine: Literal["local", "ray"] = option(
        "local", help="Where the tokenizing runs: on this machine, or on a Ray cluster."
    )
    ray_address: str | None = option(
        None,
        Bound(
            lambda address: not is_url(address),
            "run duet on a node of the cluster, and give HOST:PORT of its head, or auto",
        ),
        help="HOST:PORT of the Ray cluster, or auto. Default: the one that runs on this machine, "
        "else one is started, with --num-workers CPUs.",
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            self.target_length <= self.model_max_length,
            "max_target_length",
            self.max_target_length,
            "give no more than --model-max-length",
        )
        require(
            self.ray_address is None or self.engine == "ray",
            "ray_address",
            f"{self.ray_address} with --engine {self.engine}",
            "give --engine ray too, or leave the address out",
        )
        self.extra_roles()

    @property
    def target_length(self) -> int:
        """Most tokens of a decoder row."""
        return self.model_max_length if self.max_target_length is None else self.max_target_length

    def extra_roles(self) -> dict[str, str]:
        """Return the names that ``--role`` adds, in lower case, with the role each stands for."""
        roles = {}
        for text in self.role:
            name, _, role = text.rpartition("=")
            if not name.strip() or not text.isprintable() or role.lower() not in ROLE_NAMES:
                raise ConfigError(
                    "not a role",
                    where="--role",
                    got=text,
                    do="give NAME=ROLE, ROLE one of " + ", ".join(ROLE_NAMES),
                )
            roles[name.strip().lower()] = role.lower()
        return roles


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(PrepareOptions):
    """Settings of ``duet prepare``: ShareGPT files in, a prepared folder out."""

    data_path: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        help="A file, a folder or a glob of ShareGPT records, or the URL of one. Repeatable.",
    )
    eval_data_path: tuple[str, ...] = option(
        (),
        help="A file, a folder or a glob of records that become the split eval; what repeats them "
        "is left out of train. Repeatable.",
    )
    model_name_or_path: str = option(
        REQUIRED, NAMED, help="The T5 whose tokenizer is used: a folder or a hub name."
    )
    output_dir: str = option(
        "data/processed", NAMED, help="The prepared folder is made in this one; may be a URL."
    )
    cache_dir: str | None = option(
        None, help="Cache folder of models from the hub. Default: the Hugging Face cache."
    )
