"""Where segments are encoded: what every engine does. It maps; what and in which order is not its.

A task is a function of ``tasks.py``; an engine calls it with the encoder of the process that it
runs in, and with the arguments that it was submitted with.
"""

from collections.abc import Callable
from typing import Any, Protocol

from pipeline.prepare.options import EncodingSettings

Task = Callable[..., Any]
"""Takes a SegmentEncoder first."""


class Engine(Protocol):
    """Runs tasks somewhere."""

    @property
    def slots(self) -> int:
        """How many tasks may be under way: all workers busy, and each with some waiting."""

    def expect(self, num_bytes: int) -> None:
        """Hear how many bytes of files will be read, before anything else."""

    def use(self, settings: EncodingSettings) -> None:
        """Say how segments are encoded; before the first task."""

    def submit(self, task: Task, *args: Any) -> Callable[[], Any]:
        """Hand over a task; return a function that waits for its result."""

    def close(self) -> None:
        """Let all workers go, without waiting for what they have not started."""
