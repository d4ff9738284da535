"""``run.json``: what a run was made of."""

import dataclasses
import json
import platform
from importlib.metadata import version

import torch

from pipeline.config import FitConfig
from pipeline.fit.context import RunContext


def run_facts(ctx: RunContext) -> str:
    """Return the content of ``run.json``."""
    manifest = ctx.data.manifest
    facts = {
        "settings": dataclasses.asdict(ctx.config),
        "prepared": {
            "fingerprint": manifest.fingerprint,
            "config": manifest.config,
            "counts": manifest.counts,
            "rows": {split: manifest.rows(split) for split in manifest.splits()},
        },
        "rows_per_step": ctx.plan.rows_per_step,
        "rows_per_step_source": ctx.plan.rows_source,
        "steps": ctx.plan.total_steps,
        "processes": ctx.accelerator.num_processes,
        "device": _device_name(ctx.accelerator.device),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _packages(ctx.config)},
    }
    return json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n"


def _packages(config: FitConfig) -> list[str]:
    """Return the packages whose versions decide a run."""
    names = ["duet-t5", "torch", "transformers", "accelerate", "tokenizers"]
    names += ["peft"] if config.lora_r else []
    return names + (["bitsandbytes"] if config.quantize or config.optim == "adamw_8bit" else [])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
