"""A part to its files: rows by split, and what is counted of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.conversation import Conversation, split_key
from pipeline.prepare.encode.encoding import PairEncoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.store.arrow_numpy import as_numpy
from pipeline.store.chunk_cache import PartInfo, PartStore
from pipeline.tokenizer import TextTokenizer

TRAIN, EVAL = "train", "eval"
_COLUMNS = ("input_ids", "labels")


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """All that decides how conversations become rows."""

    tokenizer: TextTokenizer
    model_max_length: int
    target_length: int
    eval_fraction: float
    last_turn_only: bool = False


class PartEncoder:
    """Encodes parts in this process."""

    def __init__(self, settings: EncodingSettings) -> None:
        """Tokenize the constants."""
        self._eval_fraction = settings.eval_fraction
        self._unk_id = settings.tokenizer.unk_id
        self._encoder = PairEncoder(
            settings.tokenizer,
            settings.model_max_length,
            settings.target_length,
            last_turn_only=settings.last_turn_only,
        )

    def encode(self, conversations: Sequence[Conversation], key: str, store: PartStore) -> PartInfo:
        """Write the rows of some conversations as a part of a store.

        Raises:
            OutputError: They cannot be written.
        """
        counts = PairCounts()
        unknown = 0
        lengths_by_column = {name: np.zeros(1, np.int64) for name in _COLUMNS}
        with store.new(key, self._encoder.schema) as writer:
            for split, chosen in self._split(conversations):
                for batch in self._encoder.encode(chosen, counts):
                    writer.write(split, batch)
                    for name in _COLUMNS:
                        unknown += _count(batch.column(name).values, self._unk_id)
                        found = np.bincount(np.diff(as_numpy(batch.column(name).offsets)))
                        lengths_by_column[name] = add_counts(lengths_by_column[name], found)
            return writer.publish(
                {name: n for name, n in sorted(counts.reasons.items()) if n},
                unknown,
                {name: lengths.tolist() for name, lengths in lengths_by_column.items()},
                counts.answers_with_unknown,
                dict(counts.lost),
            )

    def _split(
        self, conversations: Sequence[Conversation]
    ) -> list[tuple[str, Sequence[Conversation]]]:
        if not self._eval_fraction:
            return [(TRAIN, conversations)]
        evaluated = [is_eval(c.id, self._eval_fraction) for c in conversations]
        return [
            (TRAIN, [c for c, e in zip(conversations, evaluated, strict=True) if not e]),
            (EVAL, [c for c, e in zip(conversations, evaluated, strict=True) if e]),
        ]


def is_eval(conversation_id: str, fraction: float) -> bool:
    """Return whether a conversation belongs to the split eval: by a hash of its base or id."""
    digest = hashlib.sha256(split_key(conversation_id).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def add_counts(counts: npt.NDArray[np.int64], more: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sum of two histograms, of which one may be longer."""
    longer, shorter = sorted((counts, more), key=len, reverse=True)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def _count(ids: pa.Array, wanted: int | None) -> int:
    return int(np.count_nonzero(as_numpy(ids) == wanted)) if wanted is not None else 0
