"""Lets a stage's package be called: ``pipeline.prepare(config)`` beside ``pipeline.prepare.stage``.

Both names are wanted: the folder says where the code of a stage is, the function is the public
API. Python binds a subpackage to its parent's attribute on import, so a function of that name
would be replaced by the package, depending on who imported what first. A package that can be
called is the same thing in every order.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A package that, called, runs the function of its own name in its module ``stage``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stage."""
        stage = importlib.import_module(f"{self.__name__}.stage")
        return getattr(stage, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    """Make the package of this name a CallableModule; called by its ``__init__``."""
    sys.modules[name].__class__ = CallableModule
