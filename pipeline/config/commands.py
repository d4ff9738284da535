"""Settings of the commands that neither prepare nor train."""

from dataclasses import dataclass
from typing import Literal

from pipeline.config.fields import NAMED, REQUIRED, Settings, at_least, option
from pipeline.config.hub import HubOptions


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Settings):
    """Settings of ``duet inspect``: show what a prepared folder holds."""

    prepared: str = option(help="The prepared folder.", positional=True)
    rows: int = option(3, at_least(0), help="Pairs to show, spread over the split.")
    split: Literal["train", "eval"] = option("train", help="The split to show.")
    rejected: int = option(5, at_least(0), help="Rejected records to show.")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Settings):
    """Settings of ``duet verify``: check a folder against its manifest."""

    folder: str = option(
        help="A prepared folder, a checkpoint, or the output folder of fit.", positional=True
    )


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Settings):
    """Settings of ``duet cache``: show or trim what preparations keep for later ones."""

    action: Literal["ls", "prune"] = option(
        help="ls: show what is kept. prune: delete what no prepared folder holds.", positional=True
    )
    output_dir: str = option("data/processed", help="The --output-dir of duet prepare.")
    all_parts: bool = option(
        False, help="Prune parts that a prepared folder holds too; the folder stays whole."
    )
    older_than: float = option(0.0, at_least(0), help="Prune only parts not used for so many days.")
    dry_run: bool = option(False, help="Say what would be deleted, and delete nothing.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(HubOptions):
    """Settings of ``duet export``: a trained folder in, one for other programs out."""

    model: str = option(
        REQUIRED, NAMED, help="The trained folder: the --output-dir of fit.", positional=True
    )
    output_dir: str = option(
        REQUIRED, NAMED, help="The folder to write; it must not be there, or be empty."
    )
    merge: bool = option(False, help="Merge a LoRA adapter into its base.")
    format: Literal["huggingface", "ctranslate2"] = option(
        "huggingface", help="What the folder is for."
    )
