"""What a tokenizer does not give back of a text: line ends, runs of spaces, characters."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from pipeline.tokenizer import TextTokenizer

_RUN = re.compile(r" {2,}|\t+")


def losses(text: str, ids: Sequence[int], tokenizer: TextTokenizer) -> Iterator[str]:
    """Yield ``lost_newlines``, ``lost_spaces``, ``lost_characters`` where a text loses such.

    Args:
        text: An answer.
        ids: Its ids; of an unknown token, ``Unknowns`` says what it was.
        tokenizer: Of any kind; the lossless one is not asked.
    """
    if tokenizer.is_lossless or (back := tokenizer.decode(ids)) == text:
        return
    if back.count("\n") < text.count("\n"):
        yield "lost_newlines"
    if len(_RUN.findall(back)) < len(_RUN.findall(text)):
        yield "lost_spaces"
    if tokenizer.unk_id not in ids and _visible(back) != _visible(text):
        yield "lost_characters"


def _visible(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())
