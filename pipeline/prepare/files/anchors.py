"""Where a text of JSON may be cut: at places that its content chooses, found at memory speed.

An **anchor** is a ``}`` that a hash of the 64 bytes before it chooses. So it depends on nothing
but what stands there: text that is inserted moves no anchor after it. Anchors are chosen by bytes,
not by braces, so many tiny records have no more of them than few long ones. A file is cut at the
first record that begins after an anchor: there, a value is decoded and looked at.

All of this is a guess, which only has to be good: whoever reads up to such a place notices when
it is inside of a value.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.conversation import split_part_id
from pipeline.prepare.files.elements import DECODER, TURN_KEYS, is_turn
from pipeline.prepare.files.json_values import may_go_on

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# In bytes. A cut is looked for after MIN; up to USUAL an anchor must be a strong one, after it any
# will do: so most segments are somewhat longer than USUAL. Smaller ones tokenize the same words
# more often, larger ones leave workers idle at a run's end.
MIN, USUAL = 1 << 20, 1 << 22
_STRONGER = 8  # one anchor of so many is a strong one
_HASHED = 64
_AT_ONCE = 1 << 16  # braces: a text may be nothing else
REACH = 1 << 16
"""How far before a stretch the choice of its anchors looks."""
_DRAW = (
    5765488047046174021, 8275336682942969163, 7154437704795913393, 2077169698657866657,
    2768545318656780451, 8057108420966028187, 48563862895646265, 7574495229982081903,
)  # fmt: skip

# How far after an anchor a record is looked for; the second is for long ones, and for a long
# conversation's first part after which the next one stands.
_NEAR, _FAR = 1 << 18, 1 << 21
_SHORT, _STEP = 1 << 12, 1 << 16  # how much of it is decoded at first

Anchor = tuple[int, bool]
"""The offset of a byte, and whether it is strong."""
ReadAt = Callable[[int, int], bytes]
"""Takes an offset and a size; returns the bytes there, fewer at the end."""

_BETWEEN = re.compile(rb"[}\]][\s,]*([{\[])")
_RECORD_KEYS = frozenset(
    (*TURN_KEYS, "mapping", "prompt", "instruction", "question", "query", "input", "chosen")
)


def find_anchors(
    read_at: ReadAt, start: int, end: int, usual: int, at_once: int = 1 << 22
) -> list[Anchor]:
    """Return the anchors of a stretch, in order; the same whatever stretches a text is cut into.

    Args:
        read_at: Reads the text.
        start: A byte of it.
        end: The byte after the stretch.
        usual: The size of most segments.
        at_once: How many bytes are looked through at once. Fresh memory for a whole stretch costs
            more than the search; of a file that is elsewhere, each read is a request.
    """
    blocks = ((at, min(at + at_once, end)) for at in range(start, end, at_once))
    return [anchor for block in blocks for anchor in _find_in_block(read_at, *block, usual)]


def _find_in_block(read_at: ReadAt, start: int, end: int, usual: int) -> list[Anchor]:
    import numpy as np  # late: whoever only chooses does without it

    base = max(start - REACH - _HASHED, 0)
    text = np.frombuffer(read_at(base, end - base), np.uint8)
    places = np.flatnonzero(text == ord("}"))
    gaps = np.minimum(np.diff(places, prepend=0), REACH)
    chosen = (places >= start - base) & (places >= _HASHED)
    places, gaps = places[chosen], gaps[chosen]
    if not len(places):
        return []
    hashes = _hashes(text, places)
    limits = gaps * (2.0**64 * _STRONGER / 2 / usual)
    hit = hashes < limits
    strong = hashes[hit] < limits[hit] / _STRONGER
    return list(zip((places[hit] + base).tolist(), strong.tolist(), strict=True))


def _hashes(
    text: "npt.NDArray[np.uint8]", places: "npt.NDArray[np.int64]"
) -> "npt.NDArray[np.float64]":
    import numpy as np

    draw = np.array(_DRAW, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(text, _HASHED)
    mixed = np.empty(len(places), np.uint64)
    for at in range(0, len(places), _AT_ONCE):
        before = windows[places[at : at + _AT_ONCE] - _HASHED].view(np.uint64)
        mixed[at : at + _AT_ONCE] = (before * draw).sum(1, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return mixed.astype(np.float64)


def choose_anchors(anchors: Iterable[Anchor]) -> Iterator[int]:
    """Yield the anchors at which a text is cut, in order."""
    last = 0
    for place, is_strong in anchors:
        size = place - last
        if size >= USUAL or (size >= MIN and is_strong):
            yield place
            last = place


def record_after(read_at: ReadAt, anchor: int) -> int | None:
    """Return where the first record after an anchor begins; None where none is near.

    One that can be no later part of a conversation is taken before others, so that nothing has to
    be joined over the place.
    """
    other = None
    for reach in (_NEAR, _FAR):
        text, at = read_at(anchor, reach + _STEP), 0
        while match := _BETWEEN.search(text, at, min(reach, len(text))):
            start = match.start(1)
            value, at = _decoded(text, start)
            if _is_first_part(value):
                return anchor + start
            if other is None and _is_record(value):
                other = anchor + start
    return other


def _decoded(text: bytes, start: int) -> tuple[Any, int]:
    """Return the value at a place, or None, and where to look for the next."""
    for size in (_SHORT, _STEP, len(text)):
        try:
            piece = text[start : start + size].decode("utf-8", "surrogateescape")
            value, end = DECODER.raw_decode(piece)
        except json.JSONDecodeError as error:
            if not may_go_on(error):
                break
        except (ValueError, RecursionError):
            break
        else:
            # The bracket that ends it may be one that a record follows.
            return value, start + len(piece[: end - 1].encode("utf-8", "surrogateescape"))
    return None, start


def _is_record(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and is_turn(value[0])
    return isinstance(value, dict) and not is_turn(value) and not _RECORD_KEYS.isdisjoint(value)


def _is_first_part(value: Any) -> bool:
    if not _is_record(value):
        return False
    name = value.get("id") if isinstance(value, dict) else None
    return not (isinstance(name, str) and split_part_id(name)[1])
