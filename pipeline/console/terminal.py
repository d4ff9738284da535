r"""What a terminal shows of texts that others wrote, and how long ones are paged.

A text may hold any character. Those that a terminal would obey (escape sequences that move the
cursor, set its title or write into the clipboard) and those that turn the direction of a line are
shown as pictures of themselves instead.

>>> visible("a\x1b[2J\tb\n"), visible("x\u202ey\x9b")
('a␛[2J\tb\n', 'x<202e>y<9b>')
"""

import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

_KEPT = frozenset("\n\t")
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Return a text in which no character is obeyed by a terminal, newlines and tabs apart."""
    if text.isprintable():  # none of either kind is
        return text
    return "".join(map(_shown, text))


def _is_obeyed(character: str) -> bool:
    return character in _TURNING or unicodedata.category(character) in ("Cc", "Zl", "Zp")


def _shown(character: str) -> str:
    if character in _KEPT or not _is_obeyed(character):
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<{code:x}>"


def visible_json(line: str) -> str:
    r"""Return a line of JSON with the same values in which a terminal obeys no character.

    >>> visible_json('"\u202e\x9b\\n"')
    '"\\u202e\\u009b\\n"'
    """
    if line.isprintable():
        return line
    return "".join(f"\\u{ord(c):04x}" if _is_obeyed(c) else c for c in line)


def show(lines: "Sequence[Text]") -> None:
    """Print styled lines: on a terminal a page at a time, elsewhere as plain text.

    ``PAGER`` names the pager, ``less`` if it does not; ``NO_COLOR`` takes the colours away.
    """
    if not sys.stdout.isatty():
        print("\n".join(line.plain for line in lines))
        return
    from rich.console import Console

    # Keep colours, do without where it fits on the screen, and leave the text there.
    os.environ.setdefault("LESS", "-FRX")
    console = Console(highlight=False, markup=False, emoji=False)
    with console.pager(styles=True):
        for line in lines:
            console.print(line)
