"""Conversations to rows of ids: each text is tokenized once, then rows are cut out and joined.

Turns begin on a line of their own and pieces never cross a line, so a conversation is one run of
ids: its header, then its turns. A row's source is the header, the last part of that run that fits
the window, and the prompt; its target is a part of the run too, the answer behind its tag.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.conversation import Conversation
from pipeline.prepare.encode.pairs import answer_turns
from pipeline.prepare.encode.text_encoder import Lines, LineTokenizer
from pipeline.store.arrow_numpy import lists, numbers, strings
from pipeline.store.shards import row_schema
from pipeline.template import PROMPT, TAGS, Escaper, header_text, split_system, turn_text
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids, TurnIds, cut_header, cut_source, make_window

_Row = tuple[list[Ids], list[Ids], str, int]
"""The ids of a source and a target, in pieces; the conversation; the answer's turn."""

_IDS_PER_BATCH = 1 << 23  # a conversation of a million turns has rows of gigabytes


class PairEncoder:
    """Makes the rows of conversations, in their order.

    Args:
        tokenizer: The tokenizer.
        model_max_length: Most ids of an encoder row, ``</s>`` counted.
        target_length: Most ids of a decoder row; an answer that is cut has no ``</s>``.
    """

    def __init__(self, tokenizer: TextTokenizer, model_max_length: int, target_length: int) -> None:
        """Tokenize the constants."""
        self._target_length = target_length
        self.schema = row_schema(tokenizer.vocab_size)
        dtype = self.schema.field("labels").type.value_type.to_pandas_dtype()
        self._window = make_window(tokenizer, model_max_length, PROMPT, dtype)
        self._escape = Escaper(tokenizer.normalize)
        tags = tokenizer.encode_batch(list(TAGS.values()))
        self._tag_lengths = dict(zip(TAGS, map(len, tags), strict=True))
        self._tokenizer = LineTokenizer(tokenizer, dtype)

    def encode(
        self, conversations: Sequence[Conversation], reasons: Counter[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield all pairs of some conversations, as batches of ``row_schema``.

        Args:
            conversations: All of them are tokenized together.
            reasons: What was left out or cut is counted here.
        """
        sources = [source for c in conversations if (source := self._source(c, reasons))]
        lines = self._tokenizer.encode([line for source in sources for line in source.lines])
        rows, at = _Rows(), 0
        for source, alone in zip(sources, self._answers_alone(sources, lines), strict=True):
            end = at + len(source.lines)
            turns = TurnIds(lines.ids, lines.starts[at : end + 1].tolist())
            for row in self._pairs(source, turns, alone, reasons):
                rows.add(*row)
                if rows.size >= _IDS_PER_BATCH:
                    yield rows.batch(self.schema)
                    rows = _Rows()
            at = end
        if rows.turns:
            yield rows.batch(self.schema)

    def _source(self, conversation: Conversation, reasons: Counter[str]) -> "_Source | None":
        answers = answer_turns(conversation.turns, reasons)
        if not answers:
            return None
        sentence, first = split_system(conversation.turns)
        header = header_text(sentence, self._escape)
        texts = [
            turn_text(turn, self._escape) for turn in conversation.turns[first : answers[-1] + 1]
        ]
        # Each line is tokenized with the newline that ends it.
        lines = [text[:-1] for text in (header, *texts)]
        return _Source(conversation, first, answers, lines)

    def _answers_alone(
        self, sources: Sequence["_Source"], lines: Lines
    ) -> Iterator[dict[int, Ids]]:
        """Yield the ids of those answers that are not simply the end of their line's ids."""
        alone: list[list[int]] = []
        at = 0
        for source in sources:
            regular = lines.is_regular[at : at + len(source.lines)].tolist()
            alone.append([a for a in source.answers if not source.holds_verbatim(a, regular)])
            at += len(source.lines)
        texts = [
            source.conversation.turns[a].text
            for source, answers in zip(sources, alone, strict=True)
            for a in answers
        ]
        ids = iter(self._tokenizer.encode_alone(texts))
        for answers in alone:
            yield {a: next(ids) for a in answers}

    def _pairs(
        self, source: "_Source", turns: TurnIds, alone: dict[int, Ids], reasons: Counter[str]
    ) -> Iterator[_Row]:
        """Yield the pairs of one conversation."""
        window = self._window
        header, header_is_cut = cut_header(turns.of(0), window)
        start, end = [window.prefix, header], np.concatenate([window.prompt, window.eos])
        for at in source.answers:
            line = source.line_of(at)
            answer = alone[at] if at in alone else self._answer(source, turns, at)
            if not len(answer):
                reasons["empty_answer"] += 1
                continue
            tag_length = self._tag_lengths[source.conversation.turns[at - 1].role]
            history, cut = cut_source(header, turns, 1, line, tag_length, window)
            labels, answer_is_cut = self._cut_answer(answer)
            if cut:
                reasons[cut] += 1
            reasons["header_cut"] += header_is_cut
            reasons["answer_cut"] += answer_is_cut
            yield [*start, *history, end], labels, source.conversation.id, at

    def _answer(self, source: "_Source", turns: TurnIds, at: int) -> Ids:
        """Return an answer's ids: those of its line without the tag and the newline."""
        turn = source.conversation.turns[at]
        # Behind the tag stands a space; a newline or tab that follows leaves that a piece alone.
        extra = turn.text[0] in "\n\t"
        ids = turns.of(source.line_of(at))
        return ids[self._tag_lengths[turn.role] + extra : -1]

    def _cut_answer(self, answer: Ids) -> tuple[list[Ids], bool]:
        """Return a decoder row, and whether the answer was cut: a cut is no ending, no ``</s>``."""
        prefix, eos = self._window.prefix, self._window.eos
        if len(prefix) + len(answer) + len(eos) <= self._target_length:
            return [prefix, answer, eos], False
        return [np.concatenate([prefix, answer])[: self._target_length]], True


@dataclass(frozen=True, slots=True)
class _Source:
    """What is tokenized of one conversation: the header and each turn up to the last answer."""

    conversation: Conversation
    first: int
    """Index of the first turn behind the header: 1 where a system turn became the header."""
    answers: list[int]
    lines: list[str]

    def line_of(self, turn: int) -> int:
        """Return the index of a turn's line."""
        return 1 + turn - self.first

    def holds_verbatim(self, answer: int, is_regular: Sequence[bool]) -> bool:
        """Tell whether an answer's line holds it as it is, with ids of its own."""
        line = self.line_of(answer)
        turn = self.conversation.turns[answer]
        is_escaped = len(self.lines[line]) != len(TAGS[turn.role]) + 1 + len(turn.text)
        return is_regular[line] and not is_escaped


@dataclass(slots=True)
class _Rows:
    """Rows that are not yet a record batch."""

    size: int = 0
    """Ids so far."""
    pieces: tuple[list[Ids], list[Ids]] = field(default_factory=lambda: ([], []))
    """All ids of ``input_ids`` and of ``labels``, in pieces."""
    lengths: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    conversation_ids: list[str] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def add(self, source: list[Ids], target: list[Ids], conversation_id: str, turn: int) -> None:
        """Append one row."""
        for ids, pieces, lengths in zip((source, target), self.pieces, self.lengths, strict=True):
            pieces += ids
            lengths.append(sum(map(len, ids)))
            self.size += lengths[-1]
        self.conversation_ids.append(conversation_id)
        self.turns.append(turn)

    def batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """Return all rows as Arrow has them."""
        columns = [
            lists(np.concatenate(pieces), lengths)
            for pieces, lengths in zip(self.pieces, self.lengths, strict=True)
        ]
        columns += [strings(self.conversation_ids), numbers(np.array(self.turns, np.int32))]
        return pa.RecordBatch.from_arrays(columns, schema=schema)
