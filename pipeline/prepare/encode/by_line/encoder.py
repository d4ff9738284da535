"""Conversations to rows of ids: each text is tokenized once, then rows are cut out and joined.

Turns begin on a line of their own and pieces never cross a line, so a conversation is one run of
ids: its header, then its turns. A row's source is the header, the last part of that run that fits
the window, and the prompt; its target is a part of the run too, the answer after its tag.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.conversation import Conversation
from pipeline.prepare.encode.by_line.text_encoder import Lines, LineTokenizer
from pipeline.prepare.encode.pairs import PairCounts, answer_turns
from pipeline.prepare.encode.rows.batch import Rows
from pipeline.prepare.encode.rows.targets import Targets
from pipeline.prepare.encode.rows.unknown import Unknowns
from pipeline.store.shards import id_dtype, row_schema
from pipeline.template import PROMPT, TAGS, Escaper, header_text, split_system, turn_text
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids, TurnIds, cut_header, cut_source, make_window

_Row = tuple[list[Ids], list[Ids], str, int]
"""The ids of a source and a target, in pieces; the conversation; the answer's turn."""


class LineEncoder:
    """Makes the rows of conversations, in their order.

    Args:
        tokenizer: The tokenizer.
        model_max_length: Most ids of an encoder row, ``</s>`` counted.
        target_length: Most ids of a decoder row; an answer that is cut has no ``</s>``.
        last_turn_only: Make a pair of each conversation's last answer alone.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        model_max_length: int,
        target_length: int,
        *,
        last_turn_only: bool = False,
    ) -> None:
        self.schema = row_schema(tokenizer.vocab_size)
        dtype = id_dtype(self.schema)
        self._window = make_window(tokenizer, model_max_length, PROMPT, dtype)
        self._escape = Escaper(tokenizer.normalize)
        tags = tokenizer.encode_batch(list(TAGS.values()))
        self._tag_lengths = dict(zip(TAGS, map(len, tags), strict=True))
        self._tokenizer = LineTokenizer(tokenizer, dtype)
        self._unknowns = Unknowns(tokenizer, has_words=self._tokenizer.goes_by_words)
        self._targets = Targets(
            tokenizer, target_length, self._unknowns, dtype, last_turn_only=last_turn_only
        )

    def encode(
        self, conversations: Sequence[Conversation], counts: PairCounts
    ) -> Iterator[pa.RecordBatch]:
        """Yield all pairs of some conversations, as batches of ``row_schema``.

        Args:
            conversations: All of them are tokenized together.
            counts: What was left out, cut or lost is counted here.
        """
        each = [PairCounts() for _ in conversations]
        found = [self._source(c, own) for c, own in zip(conversations, each, strict=True)]
        sources = [source for source in found if source]
        lines = self._tokenizer.encode([line for source in sources for line in source.lines])
        unknown = self._unknowns.lines(lines)
        rows, at = Rows(), 0
        for source, alone in zip(sources, self._answers_alone(sources, lines), strict=True):
            end = at + len(source.lines)
            turns = TurnIds(lines.ids, lines.starts[at : end + 1].tolist())
            doubtful = {i for i in source.answers if at + source.line_of(i) in unknown}
            found_answers = self._answers(source, turns, alone, doubtful)
            answers = self._targets.choose(found_answers, source.conversation, source.counts)
            source.counts.rows = len(answers)
            for row in self._pairs(source, turns, answers):
                rows.add(*row)
                if rows.is_full:
                    yield rows.batch(self.schema)
                    rows = Rows()
            at = end
        if rows.turns:
            yield rows.batch(self.schema)
        self._targets.count_lost()
        counts.take(each)

    def _source(self, conversation: Conversation, counts: PairCounts) -> "_Source | None":
        turns = conversation.turns
        answers = answer_turns(turns, counts.reasons, conversation.untrained)
        if not answers:
            counts.reasons["no_pair"] += 1
            return None
        sentence, first = split_system(turns)
        header = header_text(sentence, self._escape, conversation.tools)
        texts = [turn_text(turn, self._escape) for turn in turns[first : answers[-1] + 1]]
        # Each line is tokenized with the newline that ends it.
        lines = [text[:-1] for text in (header, *texts)]
        return _Source(conversation, first, answers, lines, counts)

    def _answers_alone(
        self, sources: Sequence["_Source"], lines: Lines
    ) -> Iterator[dict[int, Ids]]:
        """Yield the ids of those answers that are not simply the end of their line's ids."""
        alone: list[list[int]] = []
        at = 0
        for source in sources:
            regular = lines.is_context_free[at : at + len(source.lines)].tolist()
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

    def _answers(
        self,
        source: "_Source",
        turns: TurnIds,
        alone: dict[int, Ids],
        doubtful: Set[int],
    ) -> Iterator[tuple[int, Ids, bool]]:
        """Yield turn and ids of each answer, and whether an unknown token may be among them.

        Args:
            source: A conversation.
            turns: The ids of its lines.
            alone: Those of the answers that are tokenized by themselves.
            doubtful: The turns whose lines hold an unknown token.
        """
        for at in source.answers:
            if at in alone:
                yield at, alone[at], True
            else:
                yield at, self._answer(source, turns, at), at in doubtful

    def _pairs(
        self,
        source: "_Source",
        turns: TurnIds,
        answers: Sequence[tuple[int, Ids]],
    ) -> Iterator[_Row]:
        """Yield the rows of one conversation, in the window."""
        window, reasons, name = self._window, source.counts.reasons, source.conversation.id
        whole, end = turns.of(0), np.concatenate([window.prompt, window.eos])
        for at, answer in answers:
            line = source.line_of(at)
            last = turns.starts[line] - turns.starts[line - 1]
            header, header_is_cut = cut_header(whole, last, window)
            tag_length = self._tag_lengths[source.conversation.turns[at - 1].role]
            history, cut = cut_source(header, turns, 1, line, tag_length, window)
            labels, answer_is_cut = self._targets.cut(answer)
            if cut:
                reasons[cut] += 1
            if header_is_cut:
                reasons["header_cut"] += 1
            if answer_is_cut:
                reasons["answer_cut"] += 1
            yield [window.prefix, header, *history, end], labels, name, at

    def _answer(self, source: "_Source", turns: TurnIds, at: int) -> Ids:
        """Return an answer's ids: those of its line without the tag and the newline."""
        turn = source.conversation.turns[at]
        # Behind the tag stands a space; a newline or tab that follows leaves that a piece alone.
        extra = turn.text[0] in "\n\t"
        ids = turns.of(source.line_of(at))
        return ids[self._tag_lengths[turn.role] + extra : -1]


@dataclass(frozen=True, slots=True)
class _Source:
    """What is tokenized of one conversation: the header and each turn up to the last answer."""

    conversation: Conversation
    first: int
    """Index of the first turn after the header: 1 where a system turn became the header."""
    answers: list[int]
    lines: list[str]
    counts: PairCounts

    def line_of(self, turn: int) -> int:
        """Return the index of a turn's line."""
        return 1 + turn - self.first

    def holds_verbatim(self, answer: int, is_context_free: Sequence[bool]) -> bool:
        """Return whether an answer's line holds it as it is, with ids of its own."""
        line = self.line_of(answer)
        turn = self.conversation.turns[answer]
        is_escaped = len(self.lines[line]) != len(TAGS[turn.role]) + 1 + len(turn.text)
        return is_context_free[line] and not is_escaped
