"""Steps as they are cut -> the operations that they take, with padding and without; no torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.fit.data.micro_batches import MicroBatcher, Shape
from pipeline.fit.data.sampler import IntArray


@dataclass(kw_only=True, slots=True)
class StepCosts:
    """Sums over some steps as they are cut; operations are those of forward passes.

    Ratios of them compare two plans without a model or a device: see ``benchmarks/padding.py``.
    """

    steps: int = 0
    useful: float = 0.0
    """Operations without any padding."""
    padded: float = 0.0
    """Operations of all micro-batches."""
    slowest: float = 0.0
    """Of each step, those of the process that has most to do."""
    rounds: int = 0
    """Micro-batches of a process."""
    largest: Shape = Shape(0, 0, 0)
    """The micro-batch of the most padded tokens."""

    @property
    def padding(self) -> float:
        """Padded over useful operations: 1 is none."""
        return self.padded / self.useful


def cost_of_steps(
    steps: Iterable[IntArray], micro_batcher: MicroBatcher, processes: int
) -> StepCosts:
    """Return what steps cost that so many processes share; of each, its rows are given."""
    costs = StepCosts()
    for rows in steps:
        loads = [0.0] * processes
        balanced = micro_batcher.balance(rows, processes)
        for parts in balanced:
            for process, part in enumerate(parts):
                if len(part):
                    loads[process] += micro_batcher.cost(part)
                    costs.largest = max(costs.largest, micro_batcher.shape(part), key=_tokens)
        costs.steps += 1
        costs.useful += micro_batcher.useful(rows)
        costs.padded += sum(loads)
        costs.slowest += max(loads)
        costs.rounds += len(balanced)
    return costs


def _tokens(shape: Shape) -> int:
    return shape.rows * (shape.encoder + shape.decoder)
