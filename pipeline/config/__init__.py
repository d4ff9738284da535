"""The settings of each command: frozen dataclasses that validate themselves.

A field is written once, with its default and its help. The command line, the settings saved beside
a result and the reference of flags are all made from these fields. Fields that decide *what
the rows are* stand in ``PrepareOptions``, fields that decide *how to train on them* in
``FitOptions``; ``TrainConfig``, the settings of both stages in one command, has them all.

Each name is imported when it is first asked for: a class of sixty fields takes milliseconds to
make, and a command uses one of them.
"""

from typing import TYPE_CHECKING

from pipeline.lazy_names import importer

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
    "CacheConfig": "pipeline.config.commands",
    "DoctorConfig": "pipeline.config.commands",
    "EVAL_METRICS": "pipeline.config.fit_options",
    "ExportConfig": "pipeline.config.commands",
    "FitConfig": "pipeline.config.fit",
    "FitOptions": "pipeline.config.fit_options",
    "HubOptions": "pipeline.config.hub",
    "InspectConfig": "pipeline.config.commands",
    "Optimizer": "pipeline.config.views",
    "PrepareConfig": "pipeline.config.prepare",
    "PrepareOptions": "pipeline.config.prepare",
    "ROLE_NAMES": "pipeline.config.prepare",
    "RoleName": "pipeline.config.prepare",
    "Scheduler": "pipeline.config.views",
    "Strategy": "pipeline.config.views",
    "TRACKERS": "pipeline.config.fit_options",
    "TrainConfig": "pipeline.config.fit",
    "VerifyConfig": "pipeline.config.commands",
}

__all__ = sorted(_HOMES)

__getattr__ = importer(__name__, _HOMES)
