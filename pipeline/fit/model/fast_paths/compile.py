"""``--torch-compile``: a model's layers become fused kernels, in a handful of graphs.

Each layer of a stack is compiled by itself, and layers of one kind share a graph, so that a deep
model compiles as fast as a flat one. Graphs take lengths as variables: on real conversations,
graphs of fixed sizes would be 210 for each number of rows even if lengths were rounded up to
multiples of 128, for 7 % more operations.
"""

import contextlib
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError

BUCKET = 16
"""Lengths are rounded up to a multiple of this. Kernels, and with them the conditions of a graph,
ask whether a length is one; 1 % more operations on real conversations."""
MOST_GRAPHS = 64
"""Of one piece of code. T5's block is four kinds of layer, to train and to evaluate, for one row
and for more; torch's own limit of 8 would leave some of them as they are without a word."""


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile each layer of each stack, which are module lists, in place: weights keep names."""
    from torch._dynamo import config as dynamo
    from torch.fx.experimental import _config as shapes

    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)
    # Sizes that happen to be equal, such as 4 rows and 4 heads, are not the same size.
    shapes.use_duck_shape = False
    for layer in _layers(model):
        layer.compile(dynamic=True, backend=backend)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which compiled layers run as they are; torch before 2.6 has none."""
    stance: Any = getattr(torch.compiler, "set_stance", None)
    return contextlib.nullcontext() if stance is None else stance("force_eager")


def is_of_the_compiler(error: Exception) -> bool:
    """Return whether an error is torch's compiler's, which has many kinds of them."""
    kinds = (kind.__module__ for kind in type(error).__mro__)
    return any(module.startswith(("torch._dynamo", "torch._inductor")) for module in kinds)


def not_compiled(error: Exception) -> ConfigError:
    """Return the error for layers that torch's compiler cannot compile here."""
    cause = getattr(error, "inner_exception", error)  # what the backend raised
    return ConfigError(
        "the model cannot be compiled",
        where="--torch-compile",
        got=next(iter(str(cause).strip().splitlines()), type(cause).__name__),
        do="install what is missing (on a CPU, a C++ compiler), or leave --torch-compile out",
    )


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers of the module's stacks, the outermost where stacks are nested."""
    found: list[nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else _layers(child)
    return found
