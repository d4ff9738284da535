"""The settings of each command: frozen dataclasses that validate themselves.

A field is written once, with its default and its help. The command line, the settings saved beside
a result and the reference of flags are all made from these fields. Fields that decide *what
the rows are* stand in ``PrepareOptions``, fields that decide *how to train on them* in
``FitOptions``; ``TrainConfig``, the settings of both stages in one command, has them all.

Each name is imported when it is first asked for: a class of sixty fields takes milliseconds to
make, and a command uses one of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config.commands import CacheConfig as CacheConfig
    from pipeline.config.commands import DoctorConfig as DoctorConfig
    from pipeline.config.commands import ExportConfig as ExportConfig
    from pipeline.config.commands import InspectConfig as InspectConfig
    from pipeline.config.commands import VerifyConfig as VerifyConfig
    from pipeline.config.fit import FitConfig as FitConfig
    from pipeline.config.fit import TrainConfig as TrainConfig
    from pipeline.config.fit_options import EVAL_METRICS as EVAL_METRICS
    from pipeline.config.fit_options import TRACKERS as TRACKERS
    from pipeline.config.fit_options import FitOptions as FitOptions
    from pipeline.config.hub import HubOptions as HubOptions
    from pipeline.config.prepare import ROLE_NAMES as ROLE_NAMES
    from pipeline.config.prepare import PrepareConfig as PrepareConfig
    from pipeline.config.prepare import PrepareOptions as PrepareOptions
    from pipeline.config.prepare import RoleName as RoleName
    from pipeline.config.views import Optimizer as Optimizer
    from pipeline.config.views import Scheduler as Scheduler
    from pipeline.config.views import Strategy as Strategy

_HOMES = {
    "CacheConfig": "commands",
    "DoctorConfig": "commands",
    "EVAL_METRICS": "fit_options",
    "ExportConfig": "commands",
    "FitConfig": "fit",
    "FitOptions": "fit_options",
    "HubOptions": "hub",
    "InspectConfig": "commands",
    "Optimizer": "views",
    "PrepareConfig": "prepare",
    "PrepareOptions": "prepare",
    "ROLE_NAMES": "prepare",
    "RoleName": "prepare",
    "Scheduler": "views",
    "Strategy": "views",
    "TRACKERS": "fit_options",
    "TrainConfig": "fit",
    "VerifyConfig": "commands",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"pipeline.config.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pipeline.config' has no attribute {name!r}")
