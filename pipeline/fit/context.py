"""What a run is made of before it has a model: nouns only, and nothing here does anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import FitConfig
from pipeline.config.views import Sharding
from pipeline.fit.data.prepared import PreparedData
from pipeline.fit.schedule import RunPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """A run, ready to get a model."""

    config: FitConfig
    accelerator: Any
    """accelerate's Accelerator, joined with the run's other processes."""
    data: PreparedData
    plan: RunPlan
    identity: dict[str, Any]
    """What must be the same for the run to resume: see ``checkpoint.format.run_identity``."""

    sharding: Sharding | None
    """How the model is sharded; None where each process holds it whole."""

    output: Path
    """The folder that everything is written into."""
