"""Rows of whole texts: those that lines give, with as few tries, and with flat memory."""

import itertools
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.encode.by_line.encoder import LineEncoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.encode.rows.unknown import Unknowns
from pipeline.prepare.encode.whole_texts.encoder import WholeTextEncoder
from pipeline.prepare.encode.whole_texts.fitting import SourceFitter
from pipeline.template import HEADER
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from tests.chat_models import FREE, STRICT, gemma_like

H, A, S, T = Role.HUMAN, Role.ASSISTANT, Role.SYSTEM, Role.TOOL


def rows_of(
    encoder: type[LineEncoder] | type[WholeTextEncoder],
    tokenizer: TextTokenizer,
    conversation: Conversation,
    length: int,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    counts, made = PairCounts(), encoder(tokenizer, length, length)
    rows = [row for batch in made.encode([conversation], counts) for row in batch.to_pylist()]
    return rows, {name: n for name, n in counts.reasons.items() if n}


TEXT = st.lists(
    st.sampled_from(["a", "the sea ", "\n", "\n\n", "### Human:", "\n### System: x", "  ", "1+1"]),
    min_size=1, max_size=6,
).map("".join)  # fmt: skip
TURNS = st.lists(st.builds(Turn, st.sampled_from([H, H, A, A, S, T]), TEXT), max_size=9)
TALK = [Turn(H, "a " * 25), Turn(A, "b"), Turn(S, "Now short."), Turn(H, "c " * 9)]
TWO_ANSWERS = [Turn(H, "a " * 50), Turn(A, "b")]


@given(TURNS, TEXT, st.sampled_from(["", '[{"name": "f"}]']), st.sampled_from([96, 128, 4096]))
@example(TALK, "d", "", 96)  # a later system text stands first, and is no header
@example(TWO_ANSWERS, "", "", 96)  # the answer before the last one is what is kept
@settings(deadline=None, max_examples=25)
def test_rows_of_whole_texts_are_those_of_lines(
    tiny_tokenizer: TextTokenizer, turns: list[Turn], question: str, tools: str, length: int
) -> None:
    shown = [turn for turn in turns if turn.role is not S or turn.text.strip()]
    asked = [Turn(H, question)] if question else []
    conversation = Conversation("x", [*shown, *asked, Turn(A, "so.")], tools=tools)
    rows, reasons = rows_of(WholeTextEncoder, tiny_tokenizer, conversation, length)
    wanted, expected = rows_of(LineEncoder, tiny_tokenizer, conversation, length)
    if not {"header_cut", "question_cut"} & {*reasons, *expected}:  # texts are cut, there, or ids
        assert (rows, reasons) == (wanted, expected)


def test_what_is_cut_keeps_as_much_as_by_lines(tiny_tokenizer: TextTokenizer) -> None:
    long, escaped = "the sea " * 60, "\n### Human: a" * 12
    for system, text in [(long, "a"), (long, long), ("Be kind.", long), ("Be kind.", escaped)]:
        turns = [Turn(S, system), Turn(H, "old"), Turn(A, "b"), Turn(H, text), Turn(A, "c")]
        conversation = Conversation("x", turns)
        (*_, row), reasons = rows_of(WholeTextEncoder, tiny_tokenizer, conversation, 128)
        (*_, wanted), expected = rows_of(LineEncoder, tiny_tokenizer, conversation, 128)
        assert reasons == expected
        assert abs(len(row["input_ids"]) - len(wanted["input_ids"])) <= 1
        texts = [tiny_tokenizer.decode(r["input_ids"]) for r in (row, wanted)]
        headers = [text.partition("\n\n")[0] for text in texts]
        assert abs(len(headers[0]) - len(headers[1])) <= len("the sea ")


def test_no_later_system_text_becomes_the_header(tmp_path: Path) -> None:
    """Of a tokenizer that is no T5's, under this program's text."""
    tokenizer = load_tokenizer(str(gemma_like(tmp_path, None)))
    turns = [Turn(H, "old " * 40), Turn(S, "Now short."), Turn(H, "q"), Turn(A, "a")]
    rows, reasons = rows_of(WholeTextEncoder, tokenizer, Conversation("x", turns), 200)
    text = tokenizer.decode(rows[0]["input_ids"])
    assert reasons == {"history_cut": 1}
    assert text == f"{HEADER}\n\n### System: Now short.\n### Human: q\n### Assistant:"


@pytest.mark.parametrize("template", [STRICT, FREE, None], ids=["strict", "free", "tagged"])
@pytest.mark.parametrize("texts", [["ok", "no", "yes"], ["a", "b " * 20, "c" * 60, ""]])
def test_what_has_to_go_is_found_in_a_few_tries(
    template: str | None, texts: list[str], tmp_path: Path
) -> None:
    """However many turns there are; and no turn goes that has room."""
    tokenizer, length = load_tokenizer(str(gemma_like(tmp_path, template))), 256
    turns = [Turn((H, A)[i % 2], texts[i % len(texts)]) for i in range(100)]
    fitter = SourceFitter(tokenizer, length)
    tries, make = Counter[str](), fitter.ids

    def counted(*args: Any) -> list[int]:
        tries["all"] += 1
        return make(*args)

    fitter.ids = counted
    fit, answers = fitter.of(Conversation("x", turns)), range(1, 100, 2)
    found = [fit(at, Counter()) for at in answers]
    assert tries["all"] <= 3.5 * len(answers)
    for at in (39, 69, 99):
        rests = (turns[first:at] for first in reversed(range(at)))
        made = (make([*fitter.default_system, *rest], "") for rest in rests)
        assert found[at // 2] == list(itertools.takewhile(lambda ids: len(ids) <= length, made))[-1]
    tries.clear()
    assert fitter.of(Conversation("x", turns))(99, Counter()) == found[-1]  # of the last alone
    assert tries["all"] <= 12


def test_answers_that_lose_characters_are_not_kept(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gemma_like(tmp_path, None)))
    tokenizer.unk_id = tokenizer.encode_batch(["e"])[0][0]  # any: it has bytes for the rest
    unknowns = Unknowns(tokenizer, has_words=False)
    unknowns.lost(["e"])
    tracemalloc.start()
    try:
        lost = unknowns.lost([f"{i} the sea " * 40 for i in range(300)])
        del lost
        assert tracemalloc.get_traced_memory()[0] < 50_000  # of 120,000 characters
    finally:
        tracemalloc.stop()
