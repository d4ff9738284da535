"""Where segments are encoded: what every engine does. It maps; what and in which order is not its.

A task is a method of ``SegmentEncoder``, by its name: so who hands it over does without NumPy and
Arrow, whose imports would be a third of its time. An engine calls it of the encoder of the process
that it runs in.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pipeline.config import PrepareConfig
from pipeline.prepare.options import EncodingInfo

Task = Literal["anchors", "row_ranges", "encode", "edit", "tokenizer_files"]


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
