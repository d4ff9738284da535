"""A conversation to the ids of a source that fits the window, by leaving out what has no room.

The rule is that of ``window.py``: the oldest turns go first, then the beginning of the question
and, where it is too long beside it, the end of the header.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.encode.whole_texts.shortening import MeasuredText, last_tokens
from pipeline.template import HEADER, Escaper, encoder_text
from pipeline.tokenizer import RefusedError, TextTokenizer

_MOST_CHARACTERS = 8
"""A history of more for each id of the window is measured turn by turn before it is tried."""

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
        self.default_header = HEADER if template is None else ""
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
    """The sources of one conversation's answers."""

    def __init__(self, fitter: SourceFitter, conversation: Conversation) -> None:
        self._fitter, self._tools = fitter, conversation.tools
        first = int(conversation.turns[0].role is Role.SYSTEM)
        self._system, self._turns = conversation.turns[:first], conversation.turns[first:]

    def __call__(self, answer: int, reasons: Counter[str]) -> list[int] | None:
        """Return the ids of the source of an answer; None: the template takes no part of it.

        Args:
            answer: Its index among the conversation's turns.
            reasons: Takes what was left out.
        """
        history = self._turns[: answer - len(self._system)]
        if self._fitter.drops_opening and history[0].role is Role.ASSISTANT:
            reasons["opening_dropped"] += 1
        last = _last_question(history)
        dropped, ids = self._drop_oldest(history, last)
        cut = ["history_cut"] if dropped else []
        if ids is None:
            ids, cut = self._shorten(history[last:])
            if "question_cut" not in cut and last:
                cut.append("history_cut")
        reasons.update(cut if ids is not None else ())
        return ids

    @functools.cached_property
    def _sizes(self) -> list[int]:
        """How many tokens each turn's text has."""
        return list(map(len, self._fitter.tokenizer.encode_batch([t.text for t in self._turns])))

    def _ids(self, turns: Sequence[Turn]) -> list[int] | None:
        try:
            return self._fitter.ids([*self._system, *turns], self._tools)
        except RefusedError:
            return None

    def _drop_oldest(self, history: Sequence[Turn], last: int) -> tuple[int, list[int] | None]:
        """Return how few of the oldest turns have to go, and the ids without them.

        Args:
            history: The turns before an answer.
            last: The most that may go; the ids are None where even that is too few.
        """
        tried: dict[int, list[int] | None] = {}

        def fits(dropped: int) -> bool:
            if dropped not in tried:
                ids = self._ids(history[dropped:])
                tried[dropped] = ids if ids and len(ids) <= self._fitter.length else None
            return tried[dropped] is not None

        size = sum(len(turn.text) for turn in history)
        if size <= _MOST_CHARACTERS * self._fitter.length and fits(0):
            return 0, tried[0]
        sizes = accumulate(reversed(self._sizes[: len(history)]))
        at = min(len(history) - sum(size <= self._fitter.length for size in sizes), last)
        while at < last and not fits(at):
            at += 1
        while at > 0 and fits(at) and fits(at - 1):
            at -= 1
        return (at, tried[at]) if fits(at) else (last, None)

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
        header_size = min(header.size, max(room - asked, room // 2))
        size = min(room - header_size, asked)
        is_whole = size == asked
        # A text that is cut may have a token more or less than it had in the whole: the header's
        # end goes where the question has room, else the question's beginning.
        while (ids := shortened(header_size, size)) is not None and len(ids) > length:
            over = len(ids) - length
            taken = min(over, header_size if is_whole else size)
            header_size -= taken if is_whole else min(over - taken, header_size)
            size -= min(over - taken, size) if is_whole else taken
        if ids is None:
            return None, []
        spare = length - len(ids)
        more = (header_size + spare, size) if is_whole else (header_size, min(size + spare, asked))
        longer = shortened(*more) if spare else None
        if longer is not None and len(longer) <= length:
            ids, (header_size, size) = longer, more
        cut = {"header_cut": header_size < header.size, "question_cut": size < asked}
        return ids, [name for name, is_cut in cut.items() if is_cut]

    def _header(self) -> str:
        """Return the text that stands before all turns."""
        system = self._system[0].text if self._system else self._fitter.default_header
        tools = f"Tools: {self._tools}" if self._tools else ""
        return f"{system}\n{tools}" if system and tools else system or tools

    def _ids_of(self, header: str, turns: Sequence[Turn]) -> list[int] | None:
        try:
            return self._fitter.ids([Turn(Role.SYSTEM, header), *turns], "")
        except RefusedError:
            return None


def _last_question(history: Sequence[Turn]) -> int:
    """Return where the turns begin that are kept: the last one, or the question that it answers."""
    at = len(history) - 1
    while at > 0 and history[at].role is Role.ASSISTANT:
        at -= 1
    return at
