"""Settings of the commands that neither prepare nor train."""

from dataclasses import dataclass
from typing import Literal

from pipeline.config.fields import NAMED, REQUIRED, Settings, at_least, option
from pipeline.config.hub import HubOptions


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Settings):
    """Settings of ``duet inspect``: show what a prepared folder holds."""

    prepared: str = option(help="Prepared folder.", positional=True)
    rows: int | None = option(
        None,
        at_least(0),
        help="Number of pairs to show, spread over the split. Default: 3; with --conversation all "
        "of them, with --dropped all rejected records.",
    )
    split: Literal["train", "eval"] = option("train", help="Split to show.")
    rejected: int = option(5, at_least(0), help="Number of rejected records to show.")
    conversation: str | None = option(
        None, NAMED, help="Show the pairs of the conversation with this id."
    )
    grep: str | None = option(None, NAMED, help="Show pairs that match this regular expression.")
    longest: bool = option(
        False, help="Show the longest pairs, by encoder and decoder tokens together."
    )
    dropped: str | None = option(
        None,
        NAMED,
        help="Show what was left out or cut for this reason, named as in the table of duet "
        "prepare: rejected records, or pairs with history_cut, question_cut or answer_cut.",
    )
    tokens: bool = option(False, help="Mark token boundaries.")
    jsonl: bool = option(False, help="Print JSON Lines: one pair or rejected record per line.")
    fidelity: int = option(
        1000,
        at_least(0),
        help="Number of answers to decode and compare with the data, if they are found. 0: off.",
    )
    data_path: tuple[str, ...] = option(
        (),
        help="The data that the folder was prepared from, for --fidelity. Default: where its "
        "config.yaml says. Repeatable.",
    )


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Settings):
    """Settings of ``duet verify``: check a folder against its manifest."""

    folder: str = option(
        help="Prepared folder, checkpoint, or output folder of fit.", positional=True
    )


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Settings):
    """Settings of ``duet cache``: show or trim what preparations keep for later ones."""

    action: Literal["ls", "prune"] = option(
        help="ls: list what is kept. prune: delete what no prepared folder uses.", positional=True
    )
    output_dir: str = option("data/processed", help="The --output-dir of duet prepare.")
    all_parts: bool = option(
        False, help="Also prune chunks that prepared folders use; these folders stay complete."
    )
    older_than: float = option(
        0.0, at_least(0), help="Only prune chunks that were not used for this many days."
    )
    dry_run: bool = option(False, help="Print what would be deleted; delete nothing.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(HubOptions):
    """Settings of ``duet export``: a trained folder in, one for other programs out."""

    model: str = option(
        REQUIRED, NAMED, help="Trained folder: the --output-dir of fit.", positional=True
    )
    output_dir: str = option(
        REQUIRED, NAMED, help="Folder to write; it must not exist, or be empty."
    )
    merge: bool = option(False, help="Merge a LoRA adapter into its base model.")
    format: Literal["huggingface", "ctranslate2"] = option(
        "huggingface", help="Format of the exported model."
    )


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Settings):
    """Settings of ``duet doctor``: what this machine has, and what is missing."""

    json: bool = option(False, help="Print JSON instead of a table, for a bug report.")
