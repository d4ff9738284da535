"""The settings of each command: frozen dataclasses that validate themselves.

A field is written once, with its default and its help. The command line, the settings saved beside
a result and the reference of flags are all made from these fields. Fields that decide *what
the rows are* stand in ``PrepareOptions``, fields that decide *how to train on them* in
``FitOptions``; ``TrainConfig``, the settings of both stages in one command, has them all.
"""

from pipeline.config.commands import (
    CacheConfig,
    DoctorConfig,
    ExportConfig,
    InspectConfig,
    VerifyConfig,
)
from pipeline.config.fit import FitConfig, TrainConfig
from pipeline.config.fit_options import EVAL_METRICS, TRACKERS, FitOptions
from pipeline.config.hub import HubOptions
from pipeline.config.prepare import ROLE_NAMES, PrepareConfig, PrepareOptions, RoleName
from pipeline.config.views import Optimizer, Scheduler, Strategy

__all__ = [
    "EVAL_METRICS",
    "ROLE_NAMES",
    "TRACKERS",
    "CacheConfig",
    "DoctorConfig",
    "ExportConfig",
    "FitConfig",
    "FitOptions",
    "HubOptions",
    "InspectConfig",
    "Optimizer",
    "PrepareConfig",
    "PrepareOptions",
    "RoleName",
    "Scheduler",
    "Strategy",
    "TrainConfig",
    "VerifyConfig",
]
