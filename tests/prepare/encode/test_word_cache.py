"""Distinct words to ids by their units, against the tokenizer itself: the same ids."""

import random
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pipeline.prepare.encode.by_line import word_cache as words_module
from pipeline.prepare.encode.by_line.unigram import UnigramTable, unigram_table
from pipeline.prepare.encode.by_line.word_cache import WordTable, gather
from pipeline.tokenizer import TextTokenizer
from scripts.tiny_t5 import read_texts
from tests.conftest import SAMPLE

# Few letters give many repeats, and repeats give equal sums.
ALPHABETS = [
    "ab<",
    "<",
    "-.",
    "-",
    "=<>/",
    "01",
    "a",
    "eo",
    "x_",
    "#*",
    "{}\\^`~",
    "'\"",
    "abcdefghijklmnopqrstuvwxyz",
    "ABCdef123.,:;!?()[]",
    "".join(map(chr, range(0x21, 0x7F))),
    "“”‘’–—„•aeIt.,!?(",
    "£€°«»®′150.",
    "éèêàâäöüßçîôûùaenrs'’",
    "șțăşţîâaeirt",
    "овадеиклмнрсту",
    "éa\u0301\u200d\u4e2d…½ﬁ▁\x01<",
    "é\u4e2d",
]
PLAIN = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@pytest.fixture(scope="session", params=["tiny", "real"])
def any_tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    tokenizer: TextTokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer


def new_words(tokenizer: TextTokenizer) -> WordTable:
    table = unigram_table(tokenizer)
    assert table is not None
    return WordTable(tokenizer, table, np.uint16)


@pytest.fixture(scope="session")
def words(any_tokenizer: TextTokenizer) -> WordTable:
    """One for the whole session: what it learnt of one word must not harm the next."""
    return new_words(any_tokenizer)


def encode(words: WordTable, texts: Sequence[str]) -> list[list[int]]:
    found = words.encode(pa.array([b" " + text.encode() for text in texts], pa.large_binary()))
    assert found.ids.dtype == np.uint16
    bounds = zip(found.starts, found.starts + found.sizes, strict=True)
    return [found.ids[start:end].tolist() for start, end in bounds]


def check(words: WordTable, peer: TextTokenizer, texts: Sequence[str]) -> None:
    expected = peer.encode_batch(texts)
    for text, ours, theirs in zip(texts, encode(words, texts), expected, strict=True):
        assert ours == theirs, ascii(text)


def random_words(alphabet: str, count: int, longest: int, seed: int = 0) -> list[str]:
    draw = random.Random(f"{alphabet}{seed}")
    return ["".join(draw.choices(alphabet, k=draw.randint(1, longest))) for _ in range(count)]


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_words_of_few_letters_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, words: WordTable, alphabet: str
) -> None:
    check(words, any_tokenizer, random_words(alphabet, 200, 14) + random_words(alphabet, 40, 127))


def test_one_character_again_and_again_has_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, words: WordTable
) -> None:
    lengths = [*range(1, 20), *range(20, 128, 9), 127]
    check(words, any_tokenizer, [chr(c) * n for c in range(0x21, 0x7F) for n in lengths])
    check(words, any_tokenizer, [f"({chr(c) * n})." for c in range(0x21, 0x7F) for n in lengths])


@given(st.lists(PLAIN, min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_any_printable_words_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, words: WordTable, texts: list[str]
) -> None:
    check(words, any_tokenizer, texts)


@given(st.lists(st.text(max_size=140), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_words_of_any_characters_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, words: WordTable, texts: list[str]
) -> None:
    texts = [*texts, *(c for text in texts for c in text)]
    some = [word for text in texts for line in text.split("\n") for word in line.split(" ")]
    check(words, any_tokenizer, [word for word in some if word and "\t" not in word])


def test_each_character_that_stands_for_itself_does_so_beside_every_kind(
    any_tokenizer: TextTokenizer, words: WordTable
) -> None:
    codes = [*range(0xA1, 0x530), *range(0x2010, 0x2100)]
    characters = [c for c in map(chr, codes) if unicodedata.category(c)[0] in "LNPS"]
    forms = ["{}", "a{}", "{}a", "{}{}", "({}", "{}.", "1{}2", "é{}’", "<{}<"]
    check(words, any_tokenizer, [f.replace("{}", c) for c in characters for f in forms])
    shuffled = random.Random(2).sample(characters, len(characters))
    check(words, any_tokenizer, [a + b for a, b in zip(characters, shuffled, strict=True)])


def test_few_words_of_real_text_go_the_tokenizers_own_way(
    real_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    distinct = sorted({word for text in read_texts(SAMPLE) for word in text.split()})
    words = new_words(real_tokenizer)
    asked: list[str] = []
    expected = real_tokenizer.encode_batch(distinct)

    def encode_batch(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
        asked.extend(texts)
        return [[] for _ in texts]

    monkeypatch.setattr(TextTokenizer, "encode_batch", encode_batch)
    found = encode(words, distinct)
    assert len(asked) < 0.15 * len(distinct)
    same = [ours == theirs for ours, theirs in zip(found, expected, strict=True)]
    assert sum(same) == len(distinct) - len(asked)


def test_of_equal_sums_the_tokenizer_chooses() -> None:
    """``aaa`` is ``aa a`` or ``a aa``; what is before decides which of the sums is greater."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.1)]
    vocabulary += [("a", -1.3), ("aa", -1.7), ("b", -0.7), ("ab", -1.9), ("ba", -2.3), ("c", -0.1)]
    peer = Tokenizer(models.Unigram(vocabulary, 2, False))
    peer.normalizer = normalizers.Prepend("▁")
    peer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never", True)
    spec = {"tokenizer.json": peer.to_str().encode()}
    tokenizer = TextTokenizer(spec, "</s>", "<unk>", "a test")
    words = WordTable(tokenizer, UnigramTable(vocabulary, str), np.uint16)
    check(words, tokenizer, [w for n in range(1, 12) for w in random_words("abc", 200, n)])


def test_long_words_have_the_tokenizers_ids(any_tokenizer: TextTokenizer, words: WordTable) -> None:
    texts = ["-" * n for n in (30, 31, 32, 33, 500)] + ["x" * 70_000, "ab." * 30_000]
    check(words, any_tokenizer, texts + random_words(ALPHABETS[14], 5, 3_000))


def test_a_word_that_is_too_long_for_sums_goes_the_tokenizers_way(
    tiny_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = new_words(tiny_tokenizer)
    asked: list[str] = []

    def encode_batch(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
        asked.extend(texts)
        return [[7] for _ in texts]

    monkeypatch.setattr(TextTokenizer, "encode_batch", encode_batch)
    monkeypatch.setattr(words_module, "LONGEST_WORD", 8)
    assert encode(words, ["a.b.c.d", "a.b.c.d."])[1] == [7]
    assert asked == ["a.b.c.d."]


@pytest.mark.parametrize(
    ("name", "limit"), [("_MAX_KEPT", 60), ("_MAX_KEPT", 1), ("_MAX_KEPT", 0), ("_MAX_BYTES", 300)]
)
def test_what_is_forgotten_is_learnt_again(
    any_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    words = new_words(any_tokenizer)
    monkeypatch.setattr(words_module, name, limit)
    monkeypatch.setattr(words_module, "_MOST_SEGMENTED", 7)
    most = 0
    for seed in range(20):
        texts = random_words("abcABC.,-(é\u4e2d", 30, 9, seed)
        check(words, any_tokenizer, texts)
        check(words, any_tokenizer, texts)
        most = max(most, len(words._numbers))
    assert 0 < most < 200


def test_units_and_words_are_tokenized_once(
    any_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["the.", "\u4e2d\u6587.", "--------", "e\u0301", "a\u0301", "\x01", "x" * 500]
    words = new_words(any_tokenizer)
    expected = encode(words, texts)
    kept = dict(words._numbers)

    def fail(*_: object) -> list[list[int]]:
        raise AssertionError("it was known")

    monkeypatch.setattr(TextTokenizer, "encode_batch", lambda _, t: fail() if t else [])
    monkeypatch.setattr(UnigramTable, "segment", fail)
    assert encode(words, texts) == expected
    assert encode(words, texts[::-1]) == expected[::-1]
    assert words._numbers == kept


def test_a_unit_and_a_word_that_read_alike_are_two_things(
    any_tokenizer: TextTokenizer, words: WordTable
) -> None:
    texts = ["\u4e2d", ".\u4e2d", "\u4e2d\u4e2d", ".", "..", "-----", ".-----"]
    check(words, any_tokenizer, texts)
    check(words, any_tokenizer, texts[::-1])


def test_words_say_whether_they_depend_on_what_is_around_them(words: WordTable) -> None:
    texts = ["a", "é", "\u0301a", "a\u0301", "\x01", "\u0600", "\u4e2d", "\u0600a"]
    array = pa.array([b" " + text.encode() for text in texts], pa.large_binary())
    for _ in range(2):
        is_context_dependent = words.encode(array).is_context_dependent.tolist()
        assert is_context_dependent == [False, False, True, False, True, True, False, True]


@pytest.mark.parametrize(
    ("starts", "sizes", "ids", "bounds"),
    [
        ([], [], [], [0]),
        ([3], [2], [13, 14], [0, 2]),
        ([3, 0, 3], [2, 1, 2], [13, 14, 10, 13, 14], [0, 2, 3, 5]),
        ([9, 2, 7, 2, 0], [0, 3, 0, 1, 0], [12, 13, 14, 12], [0, 0, 3, 3, 4, 4]),
        ([5, 5], [0, 0], [], [0, 0, 0]),
    ],
)
def test_gathered_runs_lie_one_behind_another(
    starts: list[int], sizes: list[int], ids: list[int], bounds: list[int]
) -> None:
    found = gather(np.arange(10, 20), np.array(starts, np.int32), np.array(sizes, np.int32))
    assert [part.tolist() for part in found] == [ids, bounds]
