"""What a vocabulary does not know."""

from collections import Counter

from pipeline.prepare.encode.rows.unknown import Unknowns
from pipeline.tokenizer import TextTokenizer


def test_a_long_word_takes_no_time_of_the_square_of_its_length(
    tiny_tokenizer: TextTokenizer,
) -> None:
    """Each of a word's characters was taken for its beginning: 5,000 seconds for this one."""
    unknowns = Unknowns(tiny_tokenizer, has_words=True)
    text = "x" * 1_000_000 + " 世 \x00a\té世\n"
    assert unknowns.lost([text, "plain"]) == [Counter({"世": 2, "\x00": 1}), Counter()]
