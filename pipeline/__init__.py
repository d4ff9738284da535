"""Fine-tune Flan-T5 on conversations, in two stages that meet in one folder on disk.

``prepare(PrepareConfig(...))`` turns ShareGPT records into tokenized Arrow shards;
``fit(FitConfig(...))`` trains on them. Importing this package imports neither torch nor
transformers: each public name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.lazy_names import importer

if TYPE_CHECKING:
    from pipeline.config import FitConfig as FitConfig
    from pipeline.config import PrepareConfig as PrepareConfig
    from pipeline.config import TrainConfig as TrainConfig
    from pipeline.data_module import make_supervised_data_module as make_supervised_data_module
    from pipeline.errors import DuetError as DuetError
    from pipeline.fit.data.collate import (
        DataCollatorForSupervisedDataset as DataCollatorForSupervisedDataset,
    )
    from pipeline.fit.data.dataset import SupervisedDataset as SupervisedDataset
    from pipeline.fit.model.embedding import (
        smart_tokenizer_and_embedding_resize as smart_tokenizer_and_embedding_resize,
    )
    from pipeline.fit.stage import fit as fit
    from pipeline.prepare.memory import preprocess as preprocess
    from pipeline.prepare.stage import prepare as prepare
    from pipeline.tokenizer import load_tokenizer as load_tokenizer

__version__ = "0.1.0"

_HOMES = {
    "DataCollatorForSupervisedDataset": "pipeline.fit.data.collate",
    "DuetError": "pipeline.errors",
    "FitConfig": "pipeline.config",
    "PrepareConfig": "pipeline.config",
    "SupervisedDataset": "pipeline.fit.data.dataset",
    "TrainConfig": "pipeline.config",
    "load_tokenizer": "pipeline.tokenizer",
    "make_supervised_data_module": "pipeline.data_module",
    "preprocess": "pipeline.prepare.memory",
    "smart_tokenizer_and_embedding_resize": "pipeline.fit.model.embedding",
}
_STAGES = ("fit", "prepare")  # packages that can be called: see callable_module.py

__all__ = sorted([*_HOMES, *_STAGES])

_imported = importer(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return importlib.import_module(f"pipeline.{name}")
    return _imported(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
