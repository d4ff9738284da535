"""A conversation to the ids of a source that fits the window, by leaving out what has no room.

The rule is that of ``window.py``: the oldest turns go first, then the beginning of the question
and, where it is too long beside it, the end of the header.
"""

import functools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.encode.whole_texts.shortening import MeasuredText, last_tokens
from pipeline.template import HEADER, PROMPT, Escaper, encoder_text
from pipeline.tokenizer import RefusedError, TextTokenizer
from pipeline.window import make_window

_GUESSES = 4
"""How many times the turns that have to go are guessed, before half of those in doubt go."""
_CHARACTERS = 8
"""A history of fewer for each id of the window is tried before it is measured."""

MakeIds = Callable[[Sequence[Turn], str], list[int]]
"""``ids(turns, tools)`` of the whole source; it may raise RefusedError."""


class SourceFitter:
    """Makes sources.

    Args:
        tokenizer: With its template.
        length: Most ids of a source.
    """

    def __init__(self, tokenizer: TextTokenizer, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        template = tokenizer.template
        self.ids: MakeIds = _tagged(tokenizer) if template is None else _rendered(tokenizer)
        self.default_system = [Turn(Role.SYSTEM, HEADER)] if template is None else []
        """The system text of a conversation without one: no later one may take its place."""
        self.last_turn = _last_turn if template is None else _last_question
        """Where the turns begin that are kept in any case."""
        self.half = _half(tokenizer, length) if template is None else None
        """Tokens of a system text that are kept whatever follows; None: half of what is free."""
        self.drops_opening = template is not None and not template.abilities.opening

    def of(self, conversation: Conversation) -> "_Fitting":
        """Return what makes the sources of a conversation's answers."""
        return _Fitting(self, conversation)


def _rendered(tokenizer: TextTokenizer) -> MakeIds:
    def ids(turns: Sequence[Turn], tools: str) -> list[int]:
        assert tokenizer.template is not None, "see SourceFitter"
        return tokenizer.encode_rendered(tokenizer.template.render(turns, tools))

    return ids


def _tagged(tokenizer: TextTokenizer) -> MakeIds:
    escape = Escaper(tokenizer.normalize)

    def ids(turns: Sequence[Turn], tools: str) -> list[int]:
        (found,) = tokenizer.encode_batch([encoder_text(turns, escape, tools)])
        return [*tokenizer.prefix_ids, *found, tokenizer.eos_id]

    return ids


class _Fitting:
    """The sources of one conversation's answers, asked for one after another."""

    def __init__(self, fitter: SourceFitter, conversation: Conversation) -> None:
        self._fitter, self._tools = fitter, conversation.tools
        self._first = int(conversation.turns[0].role is Role.SYSTEM)
        self._system = conversation.turns[: self._first] or fitter.default_system
        self._turns = conversation.turns[self._first :]
        self._too_long = -1
        """An earlier answer's history was, without so many turns: so is each later one's."""
        self._around = 0.0
        """How many ids a turn has around its text, as the last source had them."""

    def __call__(self, answer: int, reasons: Counter[str]) -> list[int] | None:
        """Return the ids of the source of an answer; None: the template takes no part of it.

        Args:
            answer: Its index among the conversation's turns.
            reasons: Takes what was left out.
        """
        history = self._turns[: answer - self._first]
        if self._fitter.drops_opening and history[0].role is Role.ASSISTANT:
            reasons["opening_dropped"] += 1
        last = self._fitter.last_turn(history)
        dropped, ids = self._drop_oldest(history, last)
        cut = ["history_cut"] if dropped else []
        if ids is None:
            ids, cut = self._shorten(history[last:])
            if "question_cut" not in cut and last:
                cut.append("history_cut")
        reasons.update(cut if ids is not None else ())
        return ids

    @functools.cached_property
    def _ends(self) -> list[int]:
        """How many tokens the texts have before each turn, the header's among them."""
        texts = [self._header(), *(turn.text for turn in self._turns)]
        return list(accumulate(map(len, self._fitter.tokenizer.encode_batch(texts))))

    def _ids(self, turns: Sequence[Turn]) -> list[int] | None:
        try:
            return self._fitter.ids([*self._system, *turns], self._tools)
        except RefusedError:
            return None

    def _drop_oldest(self, history: Sequence[Turn], last: int) -> tuple[int, list[int] | None]:
        """Return how few of the oldest turns have to go, and the ids without them.

        Each source that is tried tells more of the size of others.

        Args:
            history: The turns before an answer.
            last: The most that may go; the ids are None where even that is too few.
        """
        low, high, found, length = self._too_long, last + 1, None, self._fitter.length
        guesses = 0
        while high - low > 1:
            at = self._guess(history, low, high) if guesses < _GUESSES else (low + high) // 2
            guesses += 1
            ids = self._ids(history[at:])
            if ids is not None and len(ids) <= length:
                high, found = at, ids
                continue
            low = at
            if ids is not None:
                self._too_long = max(self._too_long, at)
                texts = self._text_size(history, at)
                self._around = max(len(ids) - texts, 0) / (len(history) - at)
        return min(high, last), found

    def _guess(self, history: Sequence[Turn], low: int, high: int) -> int:
        """Return how many turns probably have to go: more than ``low``, and fewer than ``high``."""
        if low < 0:  # most histories are shorter than the window, and need not be measured
            characters = sum(len(turn.text) for turn in history)
            if characters <= _CHARACTERS * self._fitter.length:
                return 0
        fits = range(low + 1, high - 1)
        return low + 1 + bisect_left(fits, True, key=lambda n: self._probably_fits(history, n))

    def _probably_fits(self, history: Sequence[Turn], dropped: int) -> bool:
        size = self._text_size(history, dropped) + self._around * (len(history) - dropped)
        return size <= self._fitter.length

    def _text_size(self, history: Sequence[Turn], dropped: int) -> int:
        """Return how many tokens the texts have without so many of the oldest turns."""
        ends = self._ends
        return ends[0] + ends[len(history)] - ends[dropped]

    def _shorten(self, turns: Sequence[Turn]) -> tuple[list[int] | None, list[str]]:
        """Return the ids of a source with its texts cut until it fits, and what was cut."""
        tokenizer, length = self._fitter.tokenizer, self._fitter.length
        header = MeasuredText.of(self._header(), tokenizer)
        texts = [MeasuredText.of(turn.text, tokenizer) for turn in turns]

        def shortened(header_size: int, size: int) -> list[int] | None:
            kept = last_tokens(texts, size)
            cut = [Turn(turn.role, text) for turn, text in zip(turns, kept, strict=True)]
            return self._ids_of(header.first(header_size), cut)

        bare = shortened(0, 0)
        if bare is None or len(bare) > length:
            return None, []
        room, asked = length - len(bare), sum(text.size for text in texts)
        half = room // 2 if self._fitter.half is None else self._fitter.half
        least = min(header.size, half)
        header_size = min(header.size, max(room - asked, half))
        size = min(room - header_size, asked)
        # A text that is cut may have a token more or less than it had in the whole.
        while (ids := shortened(header_size, size)) is not None and len(ids) > length:
            over = len(ids) - length
            of_question = min(max(over - (header_size - least), 0), size)
            size -= of_question
            header_size = max(header_size - (over - of_question), 0)
        if ids is None:
            return None, []
        spare = length - len(ids)
        more = (header_size + spare, size) if size == asked else (header_size, size + spare)
        longer = shortened(*more) if spare else None
        if longer is not None and len(longer) <= length:
            ids, (header_size, size) = longer, more
        cut = {"header_cut": header_size < header.size, "question_cut": size < asked}
        return ids, [name for name, is_cut in cut.items() if is_cut]

    def _header(self) -> str:
        """Return the text that stands before all turns."""
        system = self._system[0].text if self._system else ""
        tools = f"Tools: {self._tools}" if self._tools else ""
        return f"{system}\n{tools}" if system and tools else system or tools

    def _ids_of(self, header: str, turns: Sequence[Turn]) -> list[int] | None:
        try:
            return self._fitter.ids([Turn(Role.SYSTEM, header), *turns], "")
        except RefusedError:
            return None


def _half(tokenizer: TextTokenizer, length: int) -> int:
    window = make_window(tokenizer, length, PROMPT, np.int64)
    return window.room // 2 - len(window.blank_line)


def _last_turn(history: Sequence[Turn]) -> int:
    return len(history) - 1


def _last_question(history: Sequence[Turn]) -> int:
    """Return where the last turn begins, or the question that it answers."""
    at = len(history) - 1
    while at > 0 and history[at].role is Role.ASSISTANT:
        at -= 1
    return at
