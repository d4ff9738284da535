"""The first stage in memory: conversations in, lists of ids out, nothing on disk."""

from collections.abc import Sequence
from typing import Any

from pipeline.conversation import ROLES_BY_NAME
from pipeline.errors import RecordError
from pipeline.prepare.encode.encoders import make_pair_encoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.read.records import RecordCounts, parse_record
from pipeline.prepare.read.values import RejectedError
from pipeline.tokenizer import tokenizer_of
from pipeline.window import saved_length


def preprocess(sources: Sequence[Any], tokenizer: Any) -> dict[str, list[list[int]]]:
    """Make the pairs of some conversations, as ``prepare --no-join-parts --no-dedup`` does.

    Args:
        sources: Conversations: each a list of ``{"from", "value"}``, or a whole record
            (``{"conversations": [...]}``, ``{"messages": [...]}``). They are not changed.
        tokenizer: A transformers tokenizer. Best is the one saved in a prepared folder; a stock
            T5's is replaced by the lossless one, whose nine new ids follow its own. Its
            ``model_max_length`` is the window; where it has none, 2,048.

    Returns:
        ``{"input_ids": [...], "labels": [...]}``, a list of ids for each pair, in order.

    Raises:
        RecordError: A source is no conversation.

    Source: ``preprocess`` of FastChat's ``train_flant5``, whose place this takes.
    """
    window = saved_length(tokenizer)
    conversations = []
    for i, source in enumerate(sources):
        record = {"conversations": list(source)} if isinstance(source, (list, tuple)) else source
        try:
            conversations.append(parse_record(record, ROLES_BY_NAME, RecordCounts()))
        except RejectedError as error:
            raise RecordError(
                "not a conversation",
                where=f"sources[{i}]",
                got=error,
                do="correct it or leave it out",
            ) from error
    encoder = make_pair_encoder(tokenizer_of(tokenizer), window, window)
    batches = list(encoder.encode(conversations, PairCounts()))
    return {
        name: [row for batch in batches for row in batch.column(name).to_pylist()]
        for name in ("input_ids", "labels")
    }
