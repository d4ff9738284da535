"""What a chat reads from and says on a terminal."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_HISTORY_LINES = 1000


def say(text: str) -> None:
    """Print a line of the program itself, on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def input_history() -> Iterator[None]:
    """Give ``input()`` arrow keys and the lines of earlier chats, where there is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:  # not on every system
        yield
        return
    path = _history_path()
    readline.set_history_length(_HISTORY_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def _history_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "duet" / "chat_history"


def read_message() -> str | None:
    """Return the next line that is typed, or stands on stdin; None at the end of input.

    Raises:
        KeyboardInterrupt: ctrl-c.
    """
    if sys.stdin.isatty():
        try:
            return input("> ")  # on stdout, where readline is at work
        except EOFError:
            say("")
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
