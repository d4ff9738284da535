r"""What a chat reads from and shows on a terminal.

An answer may hold any character. Those that a terminal would obey (escape sequences that move the
cursor, set its title or write into the clipboard) and those that turn the direction of a line are
shown as pictures of themselves instead.

>>> visible("a\x1b[2J\tb\n"), visible("x\u202ey\x9b")
('a␛[2J\tb\n', 'x<202e>y<9b>')
"""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

_HISTORY_LINES = 1000
_KEPT = frozenset("\n\t")
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Return a text in which no character is obeyed by a terminal, newlines and tabs apart."""
    if text.isprintable():  # none of either kind is
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in _KEPT or not (
        character in _TURNING or unicodedata.category(character) in ("Cc", "Zl", "Zp")
    ):
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<{code:x}>"


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
