"""stdout and stderr when a process ends: a reader that has gone, a disk that is full."""

import io
import os
import select
import sys

from pipeline.errors import OutputError

READER_IS_GONE = 141
"""What a shell expects of a program whose reader closed the pipe: 128 and the signal SIGPIPE."""


def write_any_text() -> None:
    """Let stdout take any text, as stderr does: no traceback where it is ASCII."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Write what is left.

    Raises:
        OSError: It cannot be written.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def is_reader_gone() -> bool:
    """Return whether stdout or stderr is a pipe that nobody reads any more, as after ``| head``."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)  # errors are told of all the same
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def write_no_more() -> None:
    """Let what is left go nowhere: Python would try again to write it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def cannot_write(error: OSError) -> OutputError:
    """Return the line for a stream that cannot be written, as where its disk is full."""
    return OutputError(
        "cannot write",
        where=error.filename or "stdout",
        got=error.strerror or error,
        do="free some space, or write elsewhere",
    )
