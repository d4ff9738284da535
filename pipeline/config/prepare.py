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
        help="Maximum length of encoder and decoder sequences, in tokens, </s> included; 64 "
        "or more.",
    )
    max_target_length: int | None = option(
        None,
        at_least(1),
        help="Maximum length of decoder sequences, in tokens. Default: --model-max-length.",
    )
    eval_fraction: float = option(
        0.0,
        share(one=False),
        help="Fraction of conversations held out as the eval split, by a hash of their id; "
        "0 to below 1.",
    )
    join_parts: bool = option(
        True, help="Join the parts (ids BASE_N) that an export split a long conversation into."
    )
    dedup: bool = option(True, help="Leave out exact repeats of an earlier conversation.")
    train_turns: Literal["all", "last"] = option(
        "all", help="Which answers of a conversation become pairs: all, or only the last one."
    )
    chat_template: Literal["auto", "duet", "model"] = option(
        "auto",
        help="Template of the encoder's text: model (the chat template of the model's "
        "tokenizer), duet (this program's), or auto: model if there is one, else duet.",
    )
    clean_html: bool = option(
        False, help="Convert texts that are HTML, as on sharegpt.com's pages, to Markdown."
    )
    role: tuple[str, ...] = option(
        (), help="Additional speaker name, as NAME=human|assistant|system|tool. Repeatable."
    )
    num_workers: int | None = option(
        None,
        at_least(1),
        help="Number of worker processes that tokenize; 1: this process does it. "
        "Default: one per CPU core.",
    )
    engine: Literal["local", "ray"] = option(
        "local", help="Where tokenization runs: local (this machine) or ray (a Ray cluster)."
    )
    ray_address: str | None = option(
        None,
        Bound(
            lambda address: not is_url(address),
            "run duet on a node of the cluster, and give HOST:PORT of its head, or auto",
        ),
        help="Address of the Ray cluster, HOST:PORT, or auto. Default: the cluster that "
        "runs on this machine, else a new one with --num-workers CPUs.",
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
        help="File, folder, glob or URL of ShareGPT records. Repeatable.",
    )
    eval_data_path: tuple[str, ...] = option(
        (),
        help="File, folder or glob of records for the eval split. Conversations that repeat "
        "them are left out of train. Repeatable.",
    )
    model_name_or_path: str = option(
        REQUIRED, NAMED, help="Model whose tokenizer is used: a folder or a hub name."
    )
    output_dir: str = option(
        "data/processed",
        NAMED,
        help="Folder in which the prepared folder is created; may be a URL.",
    )
    cache_dir: str | None = option(
        None, help="Cache folder for models from the hub. Default: the Hugging Face cache."
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        if self.eval_data_path and self.eval_fraction:
            raise ConfigError(
                "the eval split is set in two ways",
                where="--eval-data-path",
                got=f"--eval-fraction {self.eval_fraction} too",
                do="leave one of them out",
            )
