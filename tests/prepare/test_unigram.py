"""Words to ids in NumPy, against the tokenizer itself: the same ids, to the last tie."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prepare.unigram import UnigramTable, unigram_table
from pipeline.tokenizer import TextTokenizer

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
]
PLAIN = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@pytest.fixture(scope="session", params=["tiny", "real"])
def any_tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    tokenizer: TextTokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer


@pytest.fixture(scope="session")
def table(any_tokenizer: TextTokenizer) -> UnigramTable:
    found = unigram_table(any_tokenizer)
    assert found is not None
    return found


def laid_out(words: Sequence[str], before: str = " \n\t") -> tuple[Any, Any, Any]:
    """Return words as ``takes`` and ``segment`` have them: some character before each."""
    texts = [(before[i % len(before)] + word).encode() for i, word in enumerate(words)]
    lengths = np.array(list(map(len, texts)), np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), np.cumsum(lengths) - lengths, lengths


def segment(table: UnigramTable, words: Sequence[str]) -> list[list[int]]:
    ids, counts = table.segment(*laid_out(words))
    assert ids.dtype == counts.dtype == np.int32
    assert len(ids) == counts.sum()
    return [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])]


def random_words(alphabet: str, count: int, longest: int, seed: int = 0) -> list[str]:
    draw = random.Random(f"{alphabet}{seed}")
    return ["".join(draw.choices(alphabet, k=draw.randint(1, longest))) for _ in range(count)]


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_words_of_few_letters_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, table: UnigramTable, alphabet: str
) -> None:
    words = random_words(alphabet, 200, 14) + random_words(alphabet, 40, 127)
    assert table.takes(*laid_out(words)).all()
    assert segment(table, words) == any_tokenizer.encode_batch(words)


def test_one_character_again_and_again_has_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, table: UnigramTable
) -> None:
    lengths = [*range(1, 20), *range(20, 128, 9), 127]
    words = [chr(c) * n for c in range(0x21, 0x7F) for n in lengths]
    assert segment(table, words) == any_tokenizer.encode_batch(words)


@given(st.lists(PLAIN, min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_any_printable_words_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, table: UnigramTable, words: list[str]
) -> None:
    assert table.takes(*laid_out(words)).all()
    assert segment(table, words) == any_tokenizer.encode_batch(words)


@given(st.lists(st.text(max_size=140), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_what_it_takes_of_any_text_has_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, table: UnigramTable, texts: list[str]
) -> None:
    texts += ["plain", *(c for text in texts for c in text if c.isascii())]
    words = [word for text in texts for word in text.split(" ")]
    taken = table.takes(*laid_out(words))
    chosen = [word for word, is_taken in zip(words, taken, strict=True) if is_taken]
    assert "plain" in chosen
    assert segment(table, chosen) == any_tokenizer.encode_batch(chosen)


def test_the_pieces_themselves_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, table: UnigramTable
) -> None:
    pieces = [piece.replace("▁", "") for piece in any_tokenizer.backend.get_vocab()]
    words = sorted({p for p in pieces if p.isascii() and p.isprintable() and p and " " not in p})
    shuffled = random.Random(0).sample(words, len(words))
    words += [f"{a}{b}" for a, b in zip(words, shuffled, strict=True)]
    assert len(words) > 500
    assert segment(table, words) == any_tokenizer.encode_batch(words)


def test_text_that_reads_like_a_control_id_has_the_ids_of_plain_characters(
    any_tokenizer: TextTokenizer, table: UnigramTable
) -> None:
    words = ["</s>", "<pad>", "<unk>", "<extra_id_5>", "a</s>b", "<<pad>>", "<s>", "extra_id_5>"]
    found = segment(table, words)
    assert found == any_tokenizer.encode_batch(words)
    sentinels = (any_tokenizer.backend.token_to_id(f"<extra_id_{i}>") for i in range(100))
    controls = {0, 1, 2, *sentinels}
    assert not any(controls.intersection(ids) for ids in found)


def test_words_of_other_lengths_do_not_change_a_words_ids(table: UnigramTable) -> None:
    words = random_words("ab<-=", 50, 60)
    together = segment(table, words)
    assert together == [segment(table, [word])[0] for word in words]
    shuffled = random.Random(1).sample(range(len(words)), len(words))
    again = segment(table, [words[i] for i in shuffled])
    assert again == [together[i] for i in shuffled]


@pytest.mark.parametrize(
    ("word", "is_taken"),
    [
        ("", False),
        ("a", True),
        ("a" * 127, True),  # 128 with its dummy
        ("a" * 128, False),
        ("é", False),
        ("aé", False),
        ("\x01", False),
        ("a\x7f", False),
        ("\r", False),
        ("▁", False),
        ("a\u0301", False),
    ],
)
def test_it_takes_short_words_of_printable_characters(
    table: UnigramTable, word: str, is_taken: bool
) -> None:
    for before in (" ", "\n", "\t"):
        assert table.takes(*laid_out(["x", word, "y"], before)).tolist() == [True, is_taken, True]


def test_it_takes_no_word_with_a_character_that_is_no_piece() -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    table = UnigramTable([*pieces, ("bc", -4.0), ("▁a", -4.5)])
    taken = table.takes(*laid_out(["a", "ab", "bc", "aa"]))
    assert taken.tolist() == [True, False, False, True]
    assert segment(table, ["a", "aa"]) == [[6], [6, 4]]


def test_of_equal_sums_the_first_found_stays() -> None:
    """``aaa`` is ``aa a`` or ``a aa``: sums in the tokenizer's order, the longer piece first."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    vocabulary += [("a", -1.0), ("aa", -1.0), ("b", -0.5), ("ab", -1.5), ("ba", -1.5)]
    peer = Tokenizer(models.Unigram(vocabulary, 2, False))
    peer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", True)
    table = UnigramTable(vocabulary)
    words = [w for n in range(1, 9) for w in random_words("ab", 60, n)]
    expected = [e.ids for e in peer.encode_batch(words, add_special_tokens=False)]
    assert segment(table, words) == expected


def test_the_scores_are_the_backends_and_not_those_that_python_reads_in_the_file(
    real_tokenizer: TextTokenizer,
) -> None:
    spec = json.loads(real_tokenizer.files["tokenizer.json"])
    of_file = [(piece, float(score)) for piece, score in spec["model"]["vocab"]]
    dumped = json.loads(real_tokenizer.backend.to_str())
    of_backend = [(piece, float(score)) for piece, score in dumped["model"]["vocab"]]
    assert [p for p, _ in of_file] == [p for p, _ in of_backend]
    words = ["-" * n for n in range(90, 128)]
    expected = real_tokenizer.encode_batch(words)
    table = unigram_table(real_tokenizer)
    assert table is not None
    assert segment(table, words) == expected
    # Where the two parsers agree on every score, there is nothing to tell apart.
    if of_file != of_backend:
        assert segment(UnigramTable(of_file), words) != expected


def test_a_tokenizer_that_is_not_lossless_has_no_table(tiny_tokenizer: TextTokenizer) -> None:
    spec = json.loads(tiny_tokenizer.files["tokenizer.json"])
    for change in ({"pre_tokenizer": None}, {"normalizer": None}):
        files = tiny_tokenizer.files | {"tokenizer.json": json.dumps(spec | change).encode()}
        assert unigram_table(TextTokenizer(files, "</s>", "<unk>", "a test")) is None


def test_without_a_piece_for_the_dummy_there_is_no_table(tiny_tokenizer: TextTokenizer) -> None:
    spec = json.loads(tiny_tokenizer.files["tokenizer.json"])
    vocabulary = [[p if p != "▁" else "▁▁▁▁", s] for p, s in spec["model"]["vocab"]]
    spec["model"]["vocab"] = vocabulary
    files = tiny_tokenizer.files | {"tokenizer.json": json.dumps(spec).encode()}
    assert unigram_table(TextTokenizer(files, "</s>", "<unk>", "a test")) is None
