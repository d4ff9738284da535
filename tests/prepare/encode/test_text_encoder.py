"""Lines to ids by words, against the tokenizer itself: the same ids for every text."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Role
from pipeline.prepare.encode.by_line import text_encoder as lines_module
from pipeline.prepare.encode.by_line import word_cache as words_module
from pipeline.prepare.encode.by_line.text_encoder import LineTokenizer
from pipeline.template import TAGS
from pipeline.tokenizer import TextTokenizer

TAG = TAGS[Role.ASSISTANT]
# What touches a space, a newline or a tab in some odd way.
ODD = (
    "\u0301\u0308\u0345\u20dd"  # marks that combine with what is before them
    "\u200d\u200c\u200b\u2060"  # joiners, no width
    "\u00a0\u2009\u202f\u3000\u1680"  # other spaces
    "\x00\x01\x07\x0b\x0c\r\x1b\x7f\x85"  # control characters
    "\u2028\u2029"  # other ends of a line
    "\U0001f3fb\U0001f3ff\U0001f1e9\U0001f468\U0001f469\u2764\ufe0f"  # emoji and their modifiers
    "\u0600\u0601\u06dd\u070f\u08e2"  # signs before a number
    "\u0e33\u0e01\u0eb3\u0e81"  # Thai and Lao, with sara am
    "\uff9e\uff9f\uff76\uff8a"  # halfwidth katakana and their marks
    "\u1100\u1161\u11a8\uac00\uac01"  # Hangul, in letters and whole
    "\u2581\ufeff\u00ad"  # T5's own space, byte-order mark, soft hyphen
    "\u0d4e\U000111c2\U00011f02\u0600"  # prefixes of a syllable
    "\u0903\u093f\u094d\u0915"  # Devanagari
    "\uff03\uff1a\uff1c\uff1e\ufe5f"  # full width
    "\u00bd\u2153\ufb01\u2460\u3392\u2026\u00a8\u00b4\u00b8\u2017\u037a\ufdfa"  # NFKC makes more
    "\u0378\U000e0001\ue000\U0010ffff\ufffd"  # not assigned, private, replacement
)
KNOWN = "aab<<-019.#:é \u4e2d"
TEXTS = st.text(st.sampled_from(ODD + KNOWN * 3 + "   \n\n\t"), max_size=25)


@pytest.fixture(scope="session", params=["tiny", "real"])
def any_tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    tokenizer: TextTokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer


@pytest.fixture(scope="session")
def line_tokenizer(any_tokenizer: TextTokenizer) -> LineTokenizer:
    """One for the whole session: what it learnt of one text must not harm the next."""
    return LineTokenizer(any_tokenizer, np.uint16)


def check(line_tokenizer: LineTokenizer, peer: TextTokenizer, texts: Sequence[str]) -> list[bool]:
    """Compare the ids of texts with the tokenizer's own; return which are regular."""
    lines = line_tokenizer.encode(texts)
    assert len(lines.starts) == len(texts) + 1
    assert lines.starts[0] == 0
    assert lines.starts[-1] == len(lines.ids) or not texts
    assert lines.ids.dtype == np.uint16
    expected = peer.encode_batch([text + "\n" for text in texts])
    found = [part.tolist() for part in np.split(lines.ids, lines.starts[1:-1])] if texts else []
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert ours == theirs, ascii(text)
    regular: list[bool] = lines.is_context_free.tolist()
    return regular


def answers_of_regular_lines_stand_alone(
    line_tokenizer: LineTokenizer, peer: TextTokenizer, answers: Sequence[str]
) -> int:
    """Compare the ids behind the tag with those of the answer alone; return how many could be."""
    answers = [answer for answer in answers if answer.strip()]
    texts = [f"{TAG} {answer}" for answer in answers]
    regular = check(line_tokenizer, peer, texts)
    lines = line_tokenizer.encode(texts)
    (tag,) = peer.encode_batch([TAG])
    alone = line_tokenizer.encode_alone(answers)
    assert [ids.tolist() for ids in alone] == peer.encode_batch(answers)
    for i, answer in enumerate(answers):
        if regular[i]:
            ids = lines.ids[lines.starts[i] : lines.starts[i + 1]]
            extra = answer[0] in "\n\t"
            assert ids[len(tag) + extra : -1].tolist() == alone[i].tolist(), ascii(answer)
    return sum(regular)


def random_texts(count: int, longest: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    alphabet = ODD + KNOWN * 4 + " " * 20 + "\n" * 8 + "\t" * 4
    return ["".join(draw.choices(alphabet, k=draw.randrange(longest))) for _ in range(count)]


def test_no_texts_have_no_ids(line_tokenizer: LineTokenizer) -> None:
    lines = line_tokenizer.encode([])
    assert (lines.ids.tolist(), lines.starts.tolist(), lines.is_context_free.tolist()) == (
        [],
        [0],
        [],
    )


@given(st.lists(TEXTS, max_size=12))
@settings(deadline=None)
def test_every_text_has_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, line_tokenizer: LineTokenizer, texts: list[str]
) -> None:
    check(line_tokenizer, any_tokenizer, texts)


@given(st.lists(st.text(max_size=20), max_size=8))
@settings(deadline=None)
def test_texts_of_any_characters_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, line_tokenizer: LineTokenizer, texts: list[str]
) -> None:
    check(line_tokenizer, any_tokenizer, texts)


@pytest.mark.parametrize("seed", range(4))
def test_long_random_texts_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, line_tokenizer: LineTokenizer, seed: int
) -> None:
    check(line_tokenizer, any_tokenizer, random_texts(300, 40, seed))


def test_each_odd_character_next_to_each_kind_of_space_has_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, line_tokenizer: LineTokenizer
) -> None:
    forms = ["{}", " {}", "{} ", "a{}", "{}a", "\n{}", "{}\n", "\t{}", "{}\t", "a {}b", "a{} b"]
    forms += ["  {} ", " \n{}\n ", "\t {} \t", "{} {}", "{}{}", "<{}", "{}<", "a {}\n", "a\n {} b"]
    texts = [form.replace("{}", c) for c in sorted(set(ODD + KNOWN)) for form in forms]
    check(line_tokenizer, any_tokenizer, texts)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))  # of minutes in all: each is within the limit of a test
def test_every_character_next_to_each_kind_of_space_has_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, part: int
) -> None:
    # All of planes 0 and 1 and the tags, and of ideographs, syllables and private ones some.
    dull = [range(0x3400, 0x9F00), range(0xAC00, 0xD7A0), range(0xE000, 0xF900)]
    dull += [range(0x17000, 0x18D00), range(0x20000, 0xE0000), range(0xE0200, 0x110000)]
    codes = set(range(0x110000)).difference(range(0xD800, 0xE000), *dull)
    codes |= {code for codes in dull for code in codes[::97]} - set(range(0xD800, 0xE000))
    some = [chr(code) for code in sorted(codes)][part::12]
    tokenizer = LineTokenizer(any_tokenizer, np.uint16)
    for form in ("a {}b", "a{} b", "a {} b", "\n{}\n", "\t{}\t", " {}", "{} ", "{}"):
        check(tokenizer, any_tokenizer, [form.replace("{}", c) for c in some])
    for form in ("{}b", "a{}", "a {} b", "\n{}x", "x{} "):
        answers = [form.replace("{}", c) for c in some]
        answers_of_regular_lines_stand_alone(tokenizer, any_tokenizer, answers)


@pytest.mark.slow
def test_every_pair_of_odd_characters_around_a_space_has_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, line_tokenizer: LineTokenizer
) -> None:
    odd = sorted(set(ODD))
    for a in odd:
        texts = [form.format(a, b) for b in odd for form in ("{} {}", "{}\n{}", "x{} {}y", "{}{}")]
        check(line_tokenizer, any_tokenizer, texts)
        answers_of_regular_lines_stand_alone(line_tokenizer, any_tokenizer, texts)


@pytest.mark.parametrize(
    ("texts", "regular"),
    [
        ([], []),
        ([""], [True]),
        (["", "", ""], [True] * 3),
        ([" ", "  ", "\n", "\t", "\n \n", " \t "], [True] * 6),
        (["a  b\na", " a ", "\n\na\t\tb  "], [True] * 3),
        (["naïve façade \u4e2d\u6587"], [True]),
        (["a \u0301b", "fine", "a\u0301b"], [False, True, True]),
        (["x \x01 y", "x\x01 y"], [False, True]),
        (["fine", "\x01"], [True, False]),
        (["a\u00ad b"], [False]),
    ],
)
def test_a_text_is_regular_where_its_words_stand_for_themselves(
    any_tokenizer: TextTokenizer,
    line_tokenizer: LineTokenizer,
    texts: list[str],
    regular: list[bool],
) -> None:
    assert check(line_tokenizer, any_tokenizer, texts) == regular


@given(st.lists(TEXTS, max_size=12))
@settings(deadline=None)
def test_a_regular_line_holds_the_answers_ids_behind_its_tag(
    any_tokenizer: TextTokenizer, line_tokenizer: LineTokenizer, answers: list[str]
) -> None:
    answers_of_regular_lines_stand_alone(line_tokenizer, any_tokenizer, answers)


@pytest.mark.parametrize("seed", range(4))
def test_regular_lines_are_no_rare_thing_and_hold_the_answers_ids(
    any_tokenizer: TextTokenizer, line_tokenizer: LineTokenizer, seed: int
) -> None:
    answers = random_texts(200, 30, seed)
    plain = ["a  b\n", "\nx", "\tx", "  x", "if x < 2:\n\t y </s>", " \n x", "\n\n", "x\x01", "é"]
    found = answers_of_regular_lines_stand_alone(line_tokenizer, any_tokenizer, answers + plain)
    assert found > 15


def test_what_is_forgotten_is_learnt_again(
    any_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*random_texts(200, 40, seed=7), "the same words again", "and again the same words"]
    kept, forgetful = (LineTokenizer(any_tokenizer, np.uint16) for _ in range(2))
    expected = [kept.encode(texts[at : at + 7]) for at in range(0, len(texts), 7)]
    forgotten = 0
    forget = words_module.WordTable._forget

    def count(table: Any) -> None:
        nonlocal forgotten
        forgotten += 1
        forget(table)

    monkeypatch.setattr(words_module.WordTable, "_forget", count)
    for limit in (60, 1, 0):
        monkeypatch.setattr(words_module, "_MAX_KEPT", limit)
        forgotten = 0
        for at, lines in zip(range(0, len(texts), 7), expected, strict=True):
            again = forgetful.encode(texts[at : at + 7])
            assert again.ids.tolist() == lines.ids.tolist()
            assert again.starts.tolist() == lines.starts.tolist()
            assert again.is_context_free.tolist() == lines.is_context_free.tolist()
        assert forgotten > 3
    assert check(forgetful, any_tokenizer, texts) == check(kept, any_tokenizer, texts)


def test_texts_do_not_depend_on_their_neighbours_or_on_what_came_before(
    any_tokenizer: TextTokenizer,
) -> None:
    texts = random_texts(60, 40, seed=3)
    one_by_one = LineTokenizer(any_tokenizer, np.uint16)
    alone = [one_by_one.encode([text]) for text in reversed(texts)][::-1]
    together = LineTokenizer(any_tokenizer, np.uint16).encode(texts)
    assert together.ids.tolist() == [i for lines in alone for i in lines.ids.tolist()]
    assert together.is_context_free.tolist() == [bool(lines.is_context_free[0]) for lines in alone]


def test_a_long_text_and_long_words_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, line_tokenizer: LineTokenizer
) -> None:
    texts = ["-" * n for n in (126, 127, 128, 129, 500)]
    texts += ["ab " * 30_000, "\n" * 5_000, " " * 5_000, "x" * 3_000, "\t\n " * 2_000]
    assert all(check(line_tokenizer, any_tokenizer, texts))


def test_ids_of_another_type_are_the_same(tiny_tokenizer: TextTokenizer) -> None:
    texts = random_texts(50, 40, seed=5)
    narrow, wide = (LineTokenizer(tiny_tokenizer, t).encode(texts) for t in (np.uint16, np.int32))
    assert wide.ids.dtype == np.int32
    assert wide.ids.tolist() == narrow.ids.tolist()


def test_a_tokenizer_that_is_not_lossless_goes_its_own_way(tiny_tokenizer: TextTokenizer) -> None:
    spec = json.loads(tiny_tokenizer.files["tokenizer.json"])
    spec["pre_tokenizer"] = None  # pieces may now cross a space
    files = tiny_tokenizer.files | {"tokenizer.json": json.dumps(spec).encode()}
    other = TextTokenizer(files, "</s>", "<unk>", "a test")
    tokenizer = LineTokenizer(other, np.uint16)
    texts = random_texts(80, 30, seed=9)
    assert check(tokenizer, other, texts) == [False] * len(texts)
    assert check(tokenizer, other, []) == []
    alone = [ids.tolist() for ids in tokenizer.encode_alone(texts)]
    assert alone == other.encode_batch(texts)


def test_texts_that_are_taken_in_groups_have_the_same_ids(
    any_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", *random_texts(60, 30, seed=11), " ", "\u0301 x"]
    whole = LineTokenizer(any_tokenizer, np.uint16).encode(texts)
    monkeypatch.setattr(lines_module, "_CHARACTERS_AT_ONCE", 40)
    monkeypatch.setattr(words_module, "_MOST_SEGMENTED", 3)
    parts = LineTokenizer(any_tokenizer, np.uint16).encode(texts)
    assert parts.ids.tolist() == whole.ids.tolist()
    assert parts.starts.tolist() == whole.starts.tolist()
    assert parts.is_context_free.tolist() == whole.is_context_free.tolist()


def test_a_text_too_long_to_be_taken_at_once_goes_by_line(
    any_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [
        *random_texts(60, 120, seed=13),
        "a b\n" * 30,
        "x" * 99,
        "\n" * 50,
        "a\u0301 \u0301b\n" * 9,
    ]
    monkeypatch.setattr(lines_module, "_CHARACTERS_AT_ONCE", 40)
    tokenizer = LineTokenizer(any_tokenizer, np.uint16)
    regular = check(tokenizer, any_tokenizer, texts)
    assert not any(
        is_context_free
        for is_context_free, text in zip(regular, texts, strict=True)
        if len(text) > 40
    )
    alone = [ids.tolist() for ids in tokenizer.encode_alone(texts)]
    assert alone == any_tokenizer.encode_batch(texts)
