"""Conversations to rows, against the plain reading: whole texts through the tokenizer."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest

from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.encode.by_line.encoder import LineEncoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.encode.rows import batch
from pipeline.template import Escaper, encoder_text
from pipeline.tokenizer import TextTokenizer

H, A, S, T = Role.HUMAN, Role.ASSISTANT, Role.SYSTEM, Role.TOOL
CODE = "```python\nif x < 2:\n\treturn {x}\n```\n\n### Human: no\n"

CONVERSATIONS = [
    Conversation("a_0", [Turn(H, "hi"), Turn(A, CODE), Turn(H, " \n x"), Turn(A, " </s>")]),
    Conversation("b", [Turn(S, "### Tool: x"), Turn(H, CODE), Turn(T, "\n"), Turn(A, "\u0301y")]),
    Conversation(
        "c", [Turn(A, "first"), Turn(H, "q"), Turn(A, "one"), Turn(A, "two"), Turn(A, " ")]
    ),
    Conversation("d", [Turn(H, "nobody answers")]),
    Conversation("e", [Turn(H, "q"), Turn(A, "\x01\x02"), Turn(H, "q"), Turn(A, "a")]),
]


def encode(
    tokenizer: TextTokenizer, length: int = 2048, target: int | None = None
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Return the columns of all rows, and what was left out or cut."""
    counts = PairCounts()
    batches = LineEncoder(tokenizer, length, target or length).encode(CONVERSATIONS, counts)
    return columns(batches), {name: n for name, n in counts.reasons.items() if n}


def columns(batches: Iterable[pa.RecordBatch]) -> dict[str, list[Any]]:
    return pa.Table.from_batches(batches).to_pydict()


def test_uncut_rows_are_the_ids_of_the_whole_texts(tiny_tokenizer: TextTokenizer) -> None:
    rows, reasons = encode(tiny_tokenizer)
    escape = Escaper(tiny_tokenizer.normalize)
    by_id = {c.id: c.turns for c in CONVERSATIONS}
    assert list(zip(rows["conversation_id"], rows["turn"], strict=True)) == [
        ("a_0", 1),
        ("a_0", 3),
        ("b", 3),
        ("c", 2),
        ("c", 3),
        ("e", 3),
    ]
    for i, (name, at) in enumerate(zip(rows["conversation_id"], rows["turn"], strict=True)):
        source = encoder_text(by_id[name][:at], escape)
        target = by_id[name][at].text
        (source_ids,), (target_ids,) = (tiny_tokenizer.encode_batch([t]) for t in (source, target))
        assert rows["input_ids"][i] == [*source_ids, 1]
        assert rows["labels"][i] == [*target_ids, 1]
        if name != "b":  # the tiny vocabulary has no combining accent
            assert tiny_tokenizer.decode(rows["labels"][i]) == target
    assert reasons == {
        "answer_without_question": 1,
        "empty_answer": 2,
        "no_pair": 1,
        "question_without_answer": 1,
    }


def test_rows_in_several_batches_are_the_same(
    tiny_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = LineEncoder(tiny_tokenizer, 2048, 2048)
    (whole,) = encoder.encode(CONVERSATIONS, PairCounts())
    monkeypatch.setattr(batch, "IDS_PER_BATCH", 1)
    batches = list(encoder.encode(CONVERSATIONS, PairCounts()))
    assert [batch.num_rows for batch in batches] == [1] * 6  # also inside a conversation
    assert pa.Table.from_batches(batches).combine_chunks().equals(pa.Table.from_batches([whole]))


def test_an_answer_of_exactly_the_window_keeps_its_ending_and_a_longer_one_has_none(
    tiny_tokenizer: TextTokenizer,
) -> None:
    (ids,) = tiny_tokenizer.encode_batch([CODE])
    fits, reasons = encode(tiny_tokenizer, target=len(ids) + 1)
    assert fits["labels"][0] == [*ids, 1]
    assert "answer_cut" not in reasons
    cut, reasons = encode(tiny_tokenizer, target=len(ids))
    assert cut["labels"][0] == ids
    assert reasons["answer_cut"] == 1


@pytest.mark.parametrize("length", [64, 65, 100])
def test_no_row_is_longer_than_the_window(tiny_tokenizer: TextTokenizer, length: int) -> None:
    rows, reasons = encode(tiny_tokenizer, length)
    assert max(map(len, rows["input_ids"])) <= length
    assert max(map(len, rows["labels"])) <= length
    assert all(ids[-1] == 1 for ids in rows["input_ids"])
    assert {"header_cut", "history_cut", "question_cut", "answer_cut"}.intersection(reasons)


def test_no_control_id_comes_from_a_text(tiny_tokenizer: TextTokenizer) -> None:
    turns = [Turn(S, "</s>"), Turn(H, "<pad></s> <extra_id_0>＜/s＞"), Turn(A, "<extra_id_99></s>")]
    encoder = LineEncoder(tiny_tokenizer, 512, 512)
    rows = columns(encoder.encode([Conversation("x", turns)], PairCounts()))
    for ids in (rows["input_ids"][0], rows["labels"][0]):
        controls = {tiny_tokenizer.backend.token_to_id(f"<extra_id_{i}>") for i in range(100)}
        assert not ({0, 1} | controls).intersection(ids[:-1])


UNKNOWN = "\U00013000\U00013001\U00013002"  # hieroglyphs: no tiny vocabulary has them


def rows_of(
    tokenizer: TextTokenizer, *conversations: Conversation, **options: Any
) -> tuple[list[tuple[str, int]], PairCounts]:
    """Return each row's conversation and turn, and what was counted."""
    counts = PairCounts()
    rows = columns(LineEncoder(tokenizer, 512, 512, **options).encode(conversations, counts))
    return list(zip(rows["conversation_id"], rows["turn"], strict=True)), counts


def test_an_answer_of_unknown_tokens_alone_is_left_out_and_one_with_more_is_counted(
    tiny_tokenizer: TextTokenizer,
) -> None:
    answers = [UNKNOWN, f"{UNKNOWN}. <", f"a {UNKNOWN}, b {UNKNOWN[:1]}", "4", UNKNOWN[0] + "4"]
    turns = [turn for text in answers for turn in (Turn(H, "q"), Turn(A, text))]
    rows, counts = rows_of(
        tiny_tokenizer, Conversation("x", turns), Conversation("y", [Turn(H, "q"), turns[1]])
    )
    assert rows == [("x", 5), ("x", 7), ("x", 9)]
    assert {name: n for name, n in counts.reasons.items() if n} == {
        "unknown_answer": 3,
        "no_pair": 1,
    }
    assert counts.answers_with_unknown == 2
    assert counts.lost == {UNKNOWN[0]: 3, UNKNOWN[1]: 1, UNKNOWN[2]: 1}


def test_the_last_turn_alone_is_the_last_that_could_be_a_pair(
    tiny_tokenizer: TextTokenizer,
) -> None:
    turns = [Turn(H, "q"), Turn(A, "a " * 600), Turn(H, "q"), Turn(A, "b"), Turn(A, UNKNOWN)]
    rows, counts = rows_of(tiny_tokenizer, Conversation("x", turns), last_turn_only=True)
    assert rows == [("x", 3)]
    # The answer before it would have been cut; its own history is.
    assert {name: n for name, n in counts.reasons.items() if n} == {
        "unknown_answer": 1,
        "history_cut": 1,
    }


def test_a_turn_that_is_not_trained_stays_in_the_history(tiny_tokenizer: TextTokenizer) -> None:
    turns = [Turn(H, "q"), Turn(A, "bad"), Turn(H, "again"), Turn(A, "good")]
    counts = PairCounts()
    encoder = LineEncoder(tiny_tokenizer, 512, 512)
    conversation = Conversation("x", turns, untrained=frozenset({1}))
    rows = columns(encoder.encode([conversation], counts))
    assert rows["turn"] == [3]
    assert "### Assistant: bad\n" in tiny_tokenizer.decode(rows["input_ids"][0])
    assert counts.reasons["not_trained"] == 1


def test_tools_stand_in_a_line_under_the_header(tiny_tokenizer: TextTokenizer) -> None:
    tools = '[{"name": "f"}]'
    turns = [Turn(S, "Call."), Turn(H, "q"), Turn(A, "a")]
    rows = columns(
        LineEncoder(tiny_tokenizer, 512, 512).encode(
            [Conversation("x", turns, tools=tools)], PairCounts()
        )
    )
    text = tiny_tokenizer.decode(rows["input_ids"][0])
    assert text == f"Call.\nTools: {tools}\n\n### Human: q\n### Assistant:"


def test_a_system_text_that_fits_beside_the_last_turn_is_kept_whole(
    tiny_tokenizer: TextTokenizer,
) -> None:
    system = "a b " * 100  # 201 ids of the room of 251, with two for the blank line
    short, long = "q", "q " * 150
    for question, is_cut in ((short, False), (long, True)):
        counts = PairCounts()
        turns = [Turn(S, system + "f"), Turn(H, question), Turn(A, "a")]
        rows = columns(
            LineEncoder(tiny_tokenizer, 256, 256).encode([Conversation("x", turns)], counts)
        )
        text = tiny_tokenizer.decode(rows["input_ids"][0])
        assert text.startswith(system + "f\n\n### Human: q") is not is_cut
        assert "\n\n### Human:" in text
        assert counts.reasons["header_cut"] == is_cut
