"""Which encoder makes the rows of a tokenizer: line by line where its ids and template allow it."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from pipeline.conversation import Conversation
from pipeline.prepare.encode.by_line.encoder import LineEncoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.encode.whole_texts.encoder import WholeTextEncoder
from pipeline.tokenizer import TextTokenizer


class PairEncoder(Protocol):
    """Makes the rows of conversations, in their order."""

    schema: pa.Schema

    def encode(
        self, conversations: Sequence[Conversation], counts: PairCounts
    ) -> Iterator[pa.RecordBatch]:
        """Yield all pairs of some conversations; count what was left out, cut or lost."""
        ...


def make_pair_encoder(
    tokenizer: TextTokenizer,
    model_max_length: int,
    target_length: int,
    *,
    last_turn_only: bool = False,
) -> PairEncoder:
    """Return what makes a tokenizer's rows.

    Args:
        tokenizer: The tokenizer, with its template.
        model_max_length: Most ids of an encoder row, the end token counted.
        target_length: Most ids of a decoder row; an answer that is cut has no end token.
        last_turn_only: Make a pair of each conversation's last answer alone.
    """
    by_line = tokenizer.template is None and tokenizer.is_lossless
    encoder = LineEncoder if by_line else WholeTextEncoder
    return encoder(tokenizer, model_max_length, target_length, last_turn_only=last_turn_only)
