"""Answers to decoder rows: which of them become rows, and what of each stays."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.conversation import Conversation
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.encode.rows.unknown import Unknowns
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids


class Targets:
    """Chooses answers and cuts them to their length.

    Args:
        tokenizer: The tokenizer.
        length: Most ids of a decoder row.
        unknowns: Finds its unknown tokens.
        dtype: Of the ids.
        last_turn_only: Choose each conversation's last answer alone.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        length: int,
        unknowns: Unknowns,
        dtype: Any,
        *,
        last_turn_only: bool,
    ) -> None:
        self._length, self._last_turn_only = length, last_turn_only
        self._unknowns = unknowns
        self._prefix = np.array(tokenizer.label_prefix_ids, dtype)
        self._eos = np.array([tokenizer.eos_id], dtype)
        self._doubted = list[tuple[PairCounts, str]]()

    def choose(
        self,
        answers: Iterable[tuple[int, Ids, bool]],
        conversation: Conversation,
        counts: PairCounts,
    ) -> list[tuple[int, Ids]]:
        """Return the answers that become rows: turn and ids of each, uncut.

        Args:
            answers: Turn and ids of each, and whether an unknown token may be among them.
            conversation: They are of this one.
            counts: Takes what is left out.
        """
        chosen, has_unknown = list[tuple[int, Ids]](), set[int]()
        for at, answer, is_doubtful in answers:
            if not len(answer):
                counts.reasons["empty_answer"] += 1
                continue
            if is_doubtful and self._unknowns.among(answer):
                if not self._unknowns.leave_something(answer.tolist()):
                    counts.reasons["unknown_answer"] += 1
                    continue
                has_unknown.add(at)
            chosen.append((at, answer))
        if self._last_turn_only:
            chosen = chosen[-1:]
        if not chosen:
            counts.reasons["no_pair"] += 1
        for at, _ in chosen:
            if at in has_unknown:
                counts.answers_with_unknown += 1
                self._doubted.append((counts, conversation.turns[at].text))
        return chosen

    def cut(self, answer: Ids) -> tuple[list[Ids], bool]:
        """Return a decoder row, and whether the answer was cut: a cut is no ending, no ``</s>``."""
        if len(self._prefix) + len(answer) + len(self._eos) <= self._length:
            return [self._prefix, answer, self._eos], False
        return [np.concatenate([self._prefix, answer])[: self._length]], True

    def count_lost(self) -> None:
        """Count the characters that the answers chosen since the last time lost."""
        lost = self._unknowns.lost([text for _, text in self._doubted])
        for (counts, _), characters in zip(self._doubted, lost, strict=True):
            counts.lost.update(characters)
        self._doubted.clear()
