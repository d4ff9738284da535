"""What a run is made of: ``run.json``, and ``README.md``, the hub's form of a model card."""

import dataclasses
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.config import FitConfig
from pipeline.config.fields import flag
from pipeline.console.logs import note
from pipeline.console.units import counted, duration
from pipeline.errors import OutputError
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.context import RunContext
from pipeline.store.atomic import write_file

CARD = "README.md"
_MARK = "<!-- Written by duet fit; edit it and take this line out, and it stays. -->"
_FIGURES = {
    "loss": "loss per target token, since the last log entry",
    "train_loss": "mean loss of the run",
    "eval_loss": "loss on the eval split",
    "eval_bits_per_byte": "bits per byte on the eval split",
}


def run_metadata(ctx: RunContext) -> dict[str, Any]:
    """Return what stands in ``run.json``."""
    train = ctx.data.train
    manifest, rows = train.manifest, {"train": len(train)}
    is_whole = train.fingerprint == manifest.fingerprint  # and no mixture, which has several
    return {
        "command": command(ctx.config),
        "settings": dataclasses.asdict(ctx.config),
        "prepared": {
            "fingerprint": train.fingerprint,
            "config": manifest.config,
            "counts": manifest.counts if is_whole else {},
            "rows": {split: manifest.rows(split) for split in manifest.splits()} | rows,
        },
        "rows_per_step": ctx.plan.global_batch_size,
        "rows_per_step_source": ctx.plan.rows_source,
        "steps": ctx.plan.total_steps,
        "processes": ctx.accelerator.num_processes,
        "device": _device_name(ctx.accelerator.device),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _packages(ctx.config)},
    }


def _packages(config: FitConfig) -> list[str]:
    names = ["duet-t5", "torch", "transformers", "accelerate", "tokenizers"]
    names += ["peft"] if config.lora_r else []
    return names + (["bitsandbytes"] if config.quantize or config.optim == "adamw_8bit" else [])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {counted(torch.get_num_threads(), 'thread')})"


def model_card(metadata: dict[str, Any], state: RunState) -> str:
    """Return the text of a model card, of what stands in ``run.json`` and a run's last state."""
    settings, prepared = metadata["settings"], metadata["prepared"]
    counts = prepared["rows"] | prepared["counts"]
    last = {
        name: entry[name]
        for entry in _entries_of_the_model(settings, state)
        for name in _FIGURES
        if name in entry
    }
    lines = [
        _front_matter(settings),
        _MARK,
        "",
        f"# {Path(settings['output_dir']).resolve().name}",
        "",
        f"Fine-tuned from `{_base_name(settings)}` on conversations with duet-t5.",
        "Load the tokenizer with `AutoTokenizer`: other classes may lose newlines and spaces.",
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
        f"{counted(state.step, 'step')} of at most "
        f"{counted(metadata['rows_per_step'], 'example')}, {state.tokens_seen:,} tokens, "
        f"on {counted(metadata['processes'], 'process', 'processes')} ({metadata['device']}), "
        f"in {duration(state.seconds)}. The command, without what is a default:",
        "",
        f"    {_without_places(metadata['command'])}",
        "",
        "All settings are in `run.json`, the logged losses in `trainer_state.json`, where the "
        "model was trained.",
        "",
        "## Versions",
        "",
        *_table(metadata["versions"]),
    ]
    return "\n".join(lines) + "\n"


def _entries_of_the_model(settings: dict[str, Any], state: RunState) -> list[dict[str, float]]:
    """Return the log without evaluations of other weights than the trained folder's."""
    if not settings["load_best_model_at_end"]:
        return state.log
    return [e for e in state.log if "eval_loss" not in e or e["step"] == state.best_step]


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
            for each in value if isinstance(value, tuple) else [value]:
                words += [flag(f.name), _plain(each)]
    return shlex.join(words)


def _plain(value: object) -> str:
    """Return a setting as one writes it.

    >>> _plain(5.0), _plain(5e-5), _plain(True)
    ('5', '5e-05', 'True')
    """
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _without_places(command: str) -> str:
    """Return a command with the last part of each full path: the card is for other machines.

    >>> _without_places("duet fit --data-path /home/me/chats=0.3 --output-dir out")
    'duet fit --data-path chats=0.3 --output-dir out'
    """
    words = shlex.split(command)
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in words)


def _front_matter(settings: dict[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    name = settings["model_name_or_path"]
    data = ModelCardData(
        library_name="peft" if settings["lora_r"] else "transformers",
        # A folder's path would mean nothing to others, and the hub refuses it.
        base_model=None if Path(name).is_dir() else name,
        tags=["duet-t5", "conversational"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _base_name(settings: dict[str, Any]) -> str:
    """Return the hub's name of the base model, or the name of its folder."""
    name: str = settings["model_name_or_path"]
    return Path(name).resolve().name if Path(name).is_dir() else name


def _plain_counts(counts: dict[str, Any]) -> dict[str, str]:
    return {
        f"{name} rows" if name in ("train", "eval") else name: f"{value:,}"
        for name, value in counts.items()
        if isinstance(value, int)
    }


def _table(rows: dict[str, str]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())]
