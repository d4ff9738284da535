"""A finished run -> ``README.md``: what a model is made of, in the hub's form of a model card."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from pipeline.config import FitConfig
from pipeline.config_fields import flag
from pipeline.errors import OutputError
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.logs import note
from pipeline.store.atomic import write_file

CARD = "README.md"
_MARK = "<!-- Written by duet fit; edit it and take this line out, and it stays. -->"
_FIGURES = {
    "loss": "loss, a target token, of the last steps",
    "train_loss": "loss of all steps",
    "eval_loss": "loss on the split eval",
    "eval_bits_per_byte": "bits per byte on the split eval",
}


def model_card(config: FitConfig, facts: dict[str, Any], state: RunState) -> str:
    """Return the text of a model card.

    Args:
        config: The settings.
        facts: What stands in ``run.json``.
        state: The run's last.
    """
    prepared, versions = facts["prepared"], facts["versions"]
    counts = prepared["rows"] | prepared["counts"]
    last = {name: entry[name] for entry in state.log for name in _FIGURES if name in entry}
    plural = "es" if facts["processes"] > 1 else ""
    lines = [
        _front_matter(config),
        _MARK,
        "",
        f"# {Path(config.output_dir).resolve().name}",
        "",
        f"Fine-tuned from `{_base_name(config)}` on conversations with duet-t5.",
        "",
        "## Data",
        "",
        *_table({"fingerprint": f"`{prepared['fingerprint']}`"} | _plain_counts(counts)),
        "",
        "## Result",
        "",
        *_table({_FIGURES[name]: f"{last[name]:.4f}" for name in _FIGURES if name in last}),
        "",
        "## Training",
        "",
        f"{state.step:,} steps of {facts['rows_per_step']:,} rows, {state.tokens_seen:,} tokens, "
        f"on {facts['processes']} process{plural} ({facts['device']}), "
        f"in {state.seconds:,.0f} seconds. The command, without what it leaves as it is:",
        "",
        f"    {command(config)}",
        "",
        "All settings are in `run.json`, the course of the loss in `trainer_state.json`.",
        "",
        "## Versions",
        "",
        *_table(versions),
    ]
    return "\n".join(lines) + "\n"


def write_card(output: Path, text: str) -> None:
    """Write the card into the output folder, unless a README of another's is there.

    Where that fails there is only a note: the model is what counts.
    """
    path = output / CARD
    try:
        if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
            note(f"{CARD} was there before and stays; no model card is written")
        else:
            write_file(path, text)
    except (OSError, OutputError) as error:
        note(f"no model card is written: {error}")


def command(config: FitConfig) -> str:
    """Return the command line of a run: all that is not a default."""
    words = ["duet", "fit"]
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value != f.default:
            words += [flag(f.name), str(value)]
    return shlex.join(words)


def _front_matter(config: FitConfig) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="peft" if config.lora_r else "transformers",
        # A folder's path would mean nothing to others, and the hub refuses it.
        base_model=None if _is_folder(config) else config.model_name_or_path,
        tags=["duet-t5", "conversational"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _is_folder(config: FitConfig) -> bool:
    return Path(config.model_name_or_path).is_dir()


def _base_name(config: FitConfig) -> str:
    """Return the hub's name of the base model, or the name of its folder."""
    name = config.model_name_or_path
    return Path(name).resolve().name if _is_folder(config) else name


def _plain_counts(counts: dict[str, Any]) -> dict[str, str]:
    return {
        f"{name} rows" if name in ("train", "eval") else name: f"{value:,}"
        for name, value in counts.items()
        if isinstance(value, int)
    }


def _table(rows: dict[str, str]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())]
