"""The processes of a run, joined in main memory: for what takes long, or must not touch a device.

The main group is NCCL's on GPUs: a collective that waits there keeps the device busy, and ends the
run after ten minutes. Saving, hashing and reading a checkpoint of a large model may take longer on
a slow disk; they wait here, on gloo, with a limit of their own. gloo notices at once when the
process that it waits for is gone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

LONGEST_WAIT = timedelta(hours=2)
"""For a process that hashes or writes: flan-t5-xxl with AdamW is 132 GB."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HostGroup:
    """All processes of a run on gloo; of a run of one process, that one.

    One thread at a time may use a group: each thread that talks to the others has its own.
    """

    group: Any = None
    """A process group of torch's; None for a single process."""

    @classmethod
    def join(cls) -> Self:
        """Join the run's other processes, which must all call this at the same point."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return cls()
        return cls(dist.new_group(backend="gloo", timeout=LONGEST_WAIT))

    @property
    def rank(self) -> int:
        """This process's number."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def gather(self, value: T) -> list[T]:
        """Return what each process gives, in their order, in all of them."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: T) -> T:
        """Return what the first process gives, in all of them."""
        if self.group is None:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]  # type: ignore[no-any-return]

    def run_on_all(self, work: Callable[[], T]) -> list[T]:
        """Run something in all processes; return what it returns in each, or raise in all."""
        return [_result(outcome) for outcome in self.gather(_outcome(work))]

    def run_on_first(self, work: Callable[[], T]) -> T:
        """Run something in the first process alone; return, or raise, in all what it does."""
        result: T = _result(self.from_first(_outcome(work) if self.rank == 0 else None))
        return result

    def sum(self, values: list[float]) -> list[float]:
        """Return the sums over all processes of some numbers."""
        summed = torch.tensor(values)
        if self.group is not None:
            dist.all_reduce(summed, group=self.group)
        return summed.tolist()


def _outcome(work: Callable[[], Any]) -> Any:
    """Return what work returns or raises, for other processes to hear of it."""
    try:
        return work()
    except Exception as error:
        return error


def _result(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
