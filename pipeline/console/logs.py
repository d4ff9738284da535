"""What a run says on stderr while it runs: notes.

Notes go through ``logging``, to the logger ``pipeline``, which shows them on stderr: a program that
uses this one as a library gives that logger other handlers, or none.
"""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from pipeline.world import World


def note(text: str) -> None:
    """Say one line; of several processes of a run, the first speaks for all."""
    _LOGGER.info(" ".join(text.split()))


def print_lines(lines: Iterable[str]) -> None:
    """Print a table on stderr, from the same process."""
    if _speaks():
        for line in lines:
            print(line, file=sys.stderr)


def print_result(result: object) -> None:
    """Print what a command made on stdout, from the same process."""
    if _speaks():
        print(result)


def _speaks(_: object = None) -> bool:
    return World.from_environment().is_main


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is at the time, which tests and notebooks replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("note: %(message)s"))
        self.addFilter(_speaks)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        raise AttributeError("it is sys.stderr")


_LOGGER = logging.getLogger("pipeline")
_LOGGER.setLevel(logging.INFO)
_LOGGER.propagate = False
_LOGGER.addHandler(_ToStderr())
