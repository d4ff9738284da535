"""Where segments are encoded: what every engine does. It maps; what and in which order is not its.

A task is a function of ``tasks.py``; an engine calls it with the encoder of the process that it
runs in, and with the arguments that it was submitted with.
"""

from collections.abc import Callable
from typing import Any, Protocol

from pipeline.config import PrepareConfig
from pipeline.prepare.options import EncodingInfo

Task = Callable[..., Any]
"""Takes a SegmentEncoder first."""


class Engine(Protocol):
    """Runs tasks somewhere."""

    @property
    def slots(self) -> int:
        """How many tasks may be under way: all workers busy, and each with some waiting."""

    def start(self, config: PrepareConfig, num_bytes: int) -> None:
        """Start the workers, which begin to load the tokenizer; before the first task.

        Args:
            config: The settings.
            num_bytes: Of files that will be read.
        """

    def info(self) -> EncodingInfo:
        """Return how segments are encoded, once the tokenizer is there; before the first segment.

        Raises:
            ModelError, TokenizerError: It cannot be loaded.
        """

    def submit(self, task: Task, *args: Any) -> Callable[[], Any]:
        """Hand over a task; return a function that waits for its result."""

    def close(self) -> None:
        """Let all workers go, without waiting for what they have not started."""
