"""Which process of a run this is, by the environment of ``torchrun`` or ``accelerate launch``.

Everything else asks here. It stands below ``logs``, because the first process speaks for all of
them, also before ``fit`` has joined them.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among those that a launcher started; without a launcher, the only one."""

    rank: int = 0
    """Its number, over all nodes."""
    size: int = 1
    """Processes on all nodes."""
    local_rank: int = 0
    """Its number on this node."""
    local_size: int = 1
    """Processes on this node."""

    @classmethod
    def from_environment(cls) -> "World":
        """Return what the launcher says."""
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )

    @staticmethod
    def is_launched() -> bool:
        """Return whether a launcher started this process."""
        return "RANK" in os.environ

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0
