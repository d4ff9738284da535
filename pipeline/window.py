"""Cuts a source to the window: the rule that training and chatting share.

The room for a source is the window less ``</s>`` and the prompt (and what else the tokenizer
wraps a text in). A history that is too long loses its oldest whole turns. The header is kept whole
where it fits beside the last turn, and where it takes no more than half the room; else it keeps
its first tokens and its blank line. If the last turn is too long beside it, it keeps its tag and
as many of its last tokens as fit.
"""

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tokenizer import TextTokenizer

Ids = npt.NDArray[Any]
"""Token ids of one piece of text: one dimension, any integer type."""

DEFAULT_LENGTH = 2048


def saved_length(tokenizer_or_config: Any) -> int:
    """Return the window that a transformers tokenizer, or its saved config, carries.

    Where none is set, transformers carries a huge number; the window is then 2,048.
    """
    if isinstance(tokenizer_or_config, dict):
        length = tokenizer_or_config.get("model_max_length")
    else:
        length = getattr(tokenizer_or_config, "model_max_length", None)
    return length if isinstance(length, int) and length < 1 << 20 else DEFAULT_LENGTH


@dataclass(frozen=True)
class Window:
    """Sizes and constant ids of an encoder row.

    A row is ``prefix + header + turns + prompt + </s>``, at most ``length`` ids.
    """

    length: int
    prefix: Ids
    prompt: Ids
    eos: Ids
    blank_line: Ids
    """What a header that is cut ends with."""

    @functools.cached_property
    def room(self) -> int:
        """Most ids of header and turns together."""
        return self.length - len(self.prefix) - len(self.prompt) - len(self.eos)


def make_window(tokenizer: TextTokenizer, length: int, prompt: str, dtype: Any) -> Window:
    """Make the window of a tokenizer; ``length`` counts ``</s>``."""
    prompt_ids, blank_line = tokenizer.encode_batch([prompt, "\n\n"])
    return Window(
        length=length,
        prefix=np.array(tokenizer.prefix_ids, dtype),
        prompt=np.array(prompt_ids, dtype),
        eos=np.array([tokenizer.eos_id], dtype),
        blank_line=np.array(blank_line, dtype),
    )


def cut_header(header: Ids, last_turn: int, window: Window) -> tuple[Ids, bool]:
    """Return what stays of the header, and whether it was cut.

    Args:
        header: Its ids, the blank line that ends it included.
        last_turn: How many ids the last turn before the answer has.
        window: The window.

    >>> window = Window(12, *(np.array(ids, int) for ids in ([], [90, 91], [1], [7, 7])))
    >>> header = np.array([50, 51, 52, 53, 7, 7])  # the room is 9
    >>> [cut_header(header, size, window)[0].tolist() for size in (3, 4, 99)]
    [[50, 51, 52, 53, 7, 7], [50, 51, 52, 7, 7], [50, 51, 7, 7]]
    """
    most = max(window.room - last_turn, window.room // 2)
    if len(header) <= most:
        return header, False
    kept = max(most - len(window.blank_line), 0)
    return np.concatenate([header[:kept], window.blank_line])[:most], True


@dataclass(frozen=True, slots=True)
class TurnIds:
    """The ids of a conversation's lines, one after another.

    Line i has ``ids[starts[i] : starts[i + 1]]``; ``starts`` has one entry more than lines.
    """

    ids: Ids
    starts: Sequence[int]

    def of(self, line: int) -> Ids:
        """Return the ids of one line."""
        return self.ids[self.starts[line] : self.starts[line + 1]]


def cut_source(
    header: Ids, turns: TurnIds, first: int, last: int, tag_length: int, window: Window
) -> tuple[list[Ids], str | None]:
    """Return what stays of the turns before an answer, and the name of what was cut.

    Args:
        header: Ids of the header, cut by ``cut_header``.
        turns: Ids of each turn, oldest first, with its tag.
        first: The first turn before the answer.
        last: The one after the last.
        tag_length: How many of the last turn's ids are its tag.
        window: The window.

    Returns:
        The ids that stay, in pieces, and None, ``history_cut`` or ``question_cut``.

    >>> window = Window(12, *(np.array(ids, int) for ids in ([], [90, 91], [1], [7, 7])))
    >>> header = np.array([5, 6])
    >>> turns = TurnIds(np.array([20, 21, 22, 23, 30, 31, 32, 33, *range(40, 60)]), [0, 4, 8, 28])
    >>> pieces, cut = cut_source(header, turns, 0, 2, 1, window)
    >>> [piece.tolist() for piece in pieces], cut
    ([[30, 31, 32, 33]], 'history_cut')
    >>> pieces, cut = cut_source(header, turns, 0, 3, 1, window)
    >>> [piece.tolist() for piece in pieces], cut
    ([[40], [54, 55, 56, 57, 58, 59]], 'question_cut')
    """
    ids, starts = turns.ids, turns.starts
    end, budget = starts[last], window.room - len(header)
    kept = bisect_left(starts, end - budget, first, last)
    if kept < last or first == last:
        return [ids[starts[kept] : end]], "history_cut" if kept > first else None
    question = starts[last - 1]
    tail = budget - tag_length
    return [ids[question : question + tag_length], ids[end - tail : end]], "question_cut"
