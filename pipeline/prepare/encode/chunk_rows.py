"""Conversations to the rows of a chunk, by split."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.conversation import Conversation, split_key
from pipeline.prepare.encode.chunk_content import EVAL, TRAIN
from pipeline.prepare.encode.dataset_stats import DatasetStats
from pipeline.prepare.encode.encoders import PairEncoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.encode.settings import EncodingSettings
from pipeline.store.chunk_cache import ChunkWriter


class ChunkRows:
    """Encodes groups of conversations into a chunk.

    Args:
        pairs: Returns what encodes them; called when there is one to encode.
        settings: The settings.
        split: The split that their files were given for; None: a hash of the id decides.
        writer: Takes the rows.
    """

    def __init__(
        self,
        pairs: Callable[[], PairEncoder],
        settings: EncodingSettings,
        split: str | None,
        writer: ChunkWriter,
    ) -> None:
        self._pairs, self._settings = pairs, settings
        self._split, self.writer = split, writer
        self.stats, self.evaluated = DatasetStats(), list[int]()
        self.each = list[PairCounts]()

    def encode(self, group: Sequence[Conversation]) -> None:
        """Write the rows of some conversations, and count them."""
        first = len(self.each)
        each: list[Any] = [None] * len(group)
        evaluated = [self._is_eval(c.id) for c in group]
        for split in (TRAIN, EVAL):
            chosen = [i for i, is_of_eval in enumerate(evaluated) if is_of_eval == (split == EVAL)]
            if not chosen:
                continue
            counts = PairCounts()
            for batch in self._pairs().encode([group[i] for i in chosen], counts):
                self.writer.write(split, batch)
                self.stats.add_rows(batch, self.unk_id)
            self.stats.add_pairs(counts)
            for i, own in zip(chosen, counts.each, strict=True):
                each[i] = own
        self.each += each
        self.evaluated += [first + i for i, is_of_eval in enumerate(evaluated) if is_of_eval]

    @property
    def unk_id(self) -> int | None:
        """The id of an unknown token."""
        return self._settings.tokenizer.unk_id

    def _is_eval(self, conversation_id: str) -> bool:
        if self._split is not None:
            return self._split == EVAL
        return is_eval(conversation_id, self._settings.eval_fraction)


def is_eval(conversation_id: str, fraction: float) -> bool:
    """Return whether a conversation belongs to the eval split: by a hash of its base or id."""
    if not fraction:
        return False
    digest = hashlib.sha256(split_key(conversation_id).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
