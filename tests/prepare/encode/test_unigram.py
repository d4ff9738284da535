"""Units to ids in NumPy, against the tokenizer itself: the same ids wherever they are sure."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pipeline.prepare.encode.by_line.unigram import LONGEST_UNIT, UnigramTable, unigram_table
from pipeline.tokenizer import TextTokenizer

CONTROLS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]


@pytest.fixture(scope="session", params=["tiny", "real"])
def any_tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    tokenizer: TextTokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer


@pytest.fixture(scope="session")
def table(any_tokenizer: TextTokenizer) -> UnigramTable:
    found = unigram_table(any_tokenizer)
    assert found is not None
    return found


def laid_out(texts: Sequence[str]) -> tuple[Any, Any, Any]:
    """Return texts as ``segment`` has them."""
    encoded = [text.encode() for text in texts]
    lengths = np.array(list(map(len, encoded)), np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum(lengths) - lengths, lengths


def segment(table: UnigramTable, units: Sequence[str]) -> list[list[int] | None]:
    """Return the ids of each unit, None where they are not sure."""
    ids, counts, is_sure = table.segment(*laid_out(units))
    assert ids.dtype == counts.dtype == np.int32
    assert len(ids) == counts.sum()
    assert not counts[~is_sure].any()
    parts = np.split(ids, np.cumsum(counts)[:-1])
    return [part.tolist() if sure else None for part, sure in zip(parts, is_sure, strict=True)]


def units_of(table: UnigramTable, words: Sequence[str]) -> list[list[str]]:
    """Return the units of each word."""
    text, starts, _ = laid_out([" " + word for word in words])
    at = table.unit_starts(text, starts)
    units = [part.tobytes().decode() for part in np.split(text, at[1:])]
    bounds = np.searchsorted(at, [*starts, len(text)])
    return [units[a:b] for a, b in pairwise(bounds)]


def random_words(alphabet: str, count: int, longest: int, seed: int = 0) -> list[str]:
    draw = random.Random(f"{alphabet}{seed}")
    return ["".join(draw.choices(alphabet, k=draw.randint(1, longest))) for _ in range(count)]


def hand_made(pieces: Sequence[tuple[str, float]]) -> UnigramTable:
    return UnigramTable([*CONTROLS, *pieces], str)


def test_the_pieces_themselves_have_the_tokenizers_ids(
    any_tokenizer: TextTokenizer, table: UnigramTable
) -> None:
    pieces = [piece.replace("▁", "") for piece in any_tokenizer.backend.get_vocab()]
    words = sorted({p for p in pieces if p.isascii() and p.isprintable() and p and " " not in p})
    shuffled = random.Random(0).sample(words, len(words))
    words += [f"{a}{b}" for a, b in zip(words, shuffled, strict=True)]
    words = [word for word in words if len(word) < LONGEST_UNIT and "<" not in word]
    found = segment(table, [" " + word for word in words])
    assert sum(ids is None for ids in found) < 0.02 * len(words)
    for word, ours, theirs in zip(words, found, any_tokenizer.encode_batch(words), strict=True):
        assert ours is None or ours == theirs, word


def test_units_of_other_lengths_do_not_change_a_units_ids(table: UnigramTable) -> None:
    units = random_words("abc-=", 50, LONGEST_UNIT)
    together = segment(table, units)
    assert together == [segment(table, [unit])[0] for unit in units]
    shuffled = random.Random(1).sample(range(len(units)), len(units))
    again = segment(table, [units[i] for i in shuffled])
    assert again == [together[i] for i in shuffled]


def test_units_are_cut_where_no_piece_reaches_across() -> None:
    table = hand_made([(c, -3.0) for c in "▁abcd<é"] + [("ab", -4.0), ("bcd", -4.0), ("▁c", -4.0)])
    words = ["abcd", "dcba", "caab", "aéb", "ab<cd", "zab", ""]
    assert units_of(table, words) == [
        [" ", "abcd"],
        [" ", "d", "c", "b", "a"],
        [" c", "a", "ab"],
        [" ", "a", "é", "b"],
        [" ", "ab", "<", "cd"],
        [" ", "z", "ab"],
        [" "],
    ]


def test_the_ids_of_units_are_those_of_the_word() -> None:
    table = hand_made([("▁", -2.0), ("a", -3.0), ("b", -3.5), ("ab", -4.0), ("▁a", -4.5)])
    (units,) = units_of(table, ["abab"])
    assert units == [" ab", "ab"]
    assert segment(table, units) == [[3, 6], [6]]


@pytest.mark.parametrize(
    ("unit", "is_sure"),
    [
        ("b", True),
        ("bb", True),
        ("aaa", False),  # aa a or a aa
        ("baaa", False),
        ("a", True),
        ("aa", True),
        ("abc", True),  # ab c and a bc are as good, but abc is better... and b c is worse
        ("é", True),
        ("z", False),  # no piece
        ("bz", False),
        ("de", False),  # e is no piece, though de is: the tokenizer knows a way by <unk>
        ("ñ", False),
    ],
)
def test_ids_are_sure_where_all_is_known_and_no_two_sums_are_equal(
    unit: str, is_sure: bool
) -> None:
    pieces = [("▁", -2.0), ("a", -3.0), ("aa", -4.0), ("b", -3.25), ("c", -2.5), ("abc", -1.0)]
    table = hand_made([*pieces, ("é", -3.0), ("d", -3.0), ("de", -4.0)])
    assert [ids is not None for ids in segment(table, [unit, "b"])] == [is_sure, True]


@pytest.mark.parametrize(("off", "is_sure"), [(0.0, False), (1e-9, False), (1e-3, True)])
def test_sums_that_are_nearly_equal_are_not_sure(off: float, is_sure: bool) -> None:
    pieces = [("▁", -2.0), ("a", -3.0), ("b", -3.25), ("ab", -6.25 + off)]
    assert [ids is not None for ids in segment(hand_made(pieces), ["ab"])] == [is_sure]


@pytest.mark.parametrize(
    "character",
    [
        "\u0301",  # combines with what is before it
        "\u00ad",  # a control character
        "\u1100",  # forms a syllable with the next one
        "\u0e33",  # a letter that is drawn with the one before
        "\U0001f3fb",  # a modifier of emoji
        "\u4e2d",  # would be fine, but lies outside the blocks that are known
        "…",  # the normaliser makes three of it
        "\u00a0",
        "\x01",
    ],
)
def test_a_character_that_its_neighbours_or_the_normaliser_may_change_is_not_sure(
    character: str,
) -> None:
    pieces = [*CONTROLS, ("▁", -2.0), ("a", -3.0), ("’", -3.0), (character, -3.0)]
    table = UnigramTable(pieces, lambda text: text.replace("…", "..."))
    assert segment(table, ["a", "’", character]) == [[4], [5], None]


def test_text_that_reads_like_a_control_id_has_no_control_ids(
    any_tokenizer: TextTokenizer, table: UnigramTable
) -> None:
    words = ["</s>", "<pad>", "<unk>", "<extra_id_5>", "a</s>b", "<<pad>>", "<s>", "extra_id_5>"]
    units = sorted({unit for units in units_of(table, words) for unit in units})
    assert "<" in units
    sentinels = (any_tokenizer.backend.token_to_id(f"<extra_id_{i}>") for i in range(100))
    controls = {0, 1, 2, *sentinels}
    found = [ids for ids in segment(table, units) if ids is not None]
    assert len(found) > 5
    assert not any(controls.intersection(ids) for ids in found)


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
