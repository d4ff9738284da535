"""Conversations to rows of ids: each text is tokenized once, then rows are put together.

Turns begin on a line of their own and pieces never cross a line, so the ids of a source text are
the ids of its header, its turns and the prompt, one after another.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.conversation import Conversation
from pipeline.prepare.pairs import answer_turns
from pipeline.template import PROMPT, TAGS, Escaper, header_text, split_system, turn_text
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids, cut_header, cut_source, make_window


@dataclass(slots=True)
class Rows:
    """Pairs as columns: row i is ``input_ids[i]``, ``labels[i]``, ``conversation_ids[i]``, …"""

    input_ids: list[Ids] = field(default_factory=list)
    labels: list[Ids] = field(default_factory=list)
    conversation_ids: list[str] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def add(self, input_ids: Ids, labels: Ids, conversation_id: str, turn: int) -> None:
        """Append one row."""
        self.input_ids.append(input_ids)
        self.labels.append(labels)
        self.conversation_ids.append(conversation_id)
        self.turns.append(turn)


class PairEncoder:
    """Makes the rows of conversations, in their order.

    Args:
        tokenizer: The tokenizer.
        model_max_length: Most ids of an encoder row, ``</s>`` counted.
        target_length: Most ids of a decoder row; an answer that is cut has no ``</s>``.
    """

    def __init__(self, tokenizer: TextTokenizer, model_max_length: int, target_length: int) -> None:
        """Tokenize the constants."""
        self._tokenizer, self._target_length = tokenizer, target_length
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32)
        self._window = make_window(tokenizer, model_max_length, PROMPT, self.dtype)
        self._escape = Escaper(tokenizer.normalize)
        tags = tokenizer.encode_batch(list(TAGS.values()))
        self._tag_lengths = dict(zip(TAGS, map(len, tags), strict=True))

    def encode(self, conversations: Sequence[Conversation], reasons: Counter[str]) -> Rows:
        """Return all pairs of some conversations; what was left out or cut goes to ``reasons``."""
        sources = [source for c in conversations if (source := self._source(c, reasons))]
        texts = [text for source in sources for text in source.texts]
        ids = [np.array(ids, self.dtype) for ids in self._tokenizer.encode_batch(texts)]
        rows, start = Rows(), 0
        for source in sources:
            end = start + len(source.texts)
            self._add_pairs(source, ids[start:end], rows, reasons)
            start = end
        return rows

    def _source(self, conversation: Conversation, reasons: Counter[str]) -> "_Source | None":
        answers = answer_turns(conversation.turns, reasons)
        if not answers:
            return None
        turns = conversation.turns
        sentence, first = split_system(turns)
        history = [turn_text(turn, self._escape) for turn in turns[first : answers[-1]]]
        targets = [turns[at].text for at in answers]
        texts = [header_text(sentence, self._escape), *history, *targets]
        return _Source(conversation, first, answers, texts)

    def _add_pairs(
        self, source: "_Source", ids: list[Ids], rows: Rows, reasons: Counter[str]
    ) -> None:
        header, header_is_cut = cut_header(ids[0], self._window)
        history, answers = ids[1 : -len(source.answers)], ids[-len(source.answers) :]
        for at, answer in zip(source.answers, answers, strict=True):
            if not len(answer):
                reasons["empty_answer"] += 1
                continue
            before = history[: at - source.first]
            tag_length = self._tag_lengths[source.conversation.turns[at - 1].role]
            input_ids, cut = cut_source(header, before, tag_length, self._window)
            labels, answer_is_cut = self._cut_answer(answer)
            rows.add(input_ids, labels, source.conversation.id, at)
            reasons.update([cut] if cut else [])
            reasons["header_cut"] += header_is_cut
            reasons["answer_cut"] += answer_is_cut

    def _cut_answer(self, answer: Ids) -> tuple[Ids, bool]:
        """Return a decoder row, and whether the answer was cut: a cut is no ending, no ``</s>``."""
        labels = np.concatenate([self._window.prefix, answer, self._window.eos])
        is_cut = len(labels) > self._target_length
        return labels[: self._target_length], is_cut


@dataclass(frozen=True, slots=True)
class _Source:
    """What is tokenized of one conversation: header, turns up to the last answer, answers."""

    conversation: Conversation
    first: int
    """Index of the first turn behind the header: 1 where a system turn became the header."""
    answers: list[int]
    texts: list[str]
