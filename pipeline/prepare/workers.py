"""Encodes batches of conversations, in order, in this process or in several.

Workers get conversations and give Arrow record batches. Few batches are under way at a time, so
memory stays flat whatever the input's size; the order of rows never depends on who was faster.
"""

import contextlib
import hashlib
import multiprocessing
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.conversation import Conversation, split_part_id
from pipeline.errors import DuetError
from pipeline.prepare.encoding import PairEncoder, Rows
from pipeline.store.shards import row_schema
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids

TRAIN, EVAL = "train", "eval"
_CHARS_PER_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """All that decides how conversations become rows."""

    tokenizer: TextTokenizer
    model_max_length: int
    target_length: int
    eval_fraction: float


@dataclass(slots=True)
class EncodedBatch:
    """The rows of some conversations, by split, and what is counted of them."""

    rows: dict[str, pa.RecordBatch]
    reasons: Counter[str]
    unknown: int
    """How many ids are ``<unk>``, of both columns."""
    lengths: dict[str, npt.NDArray[np.int64]]
    """For each column, how many rows have each length: entry n counts the rows of n ids."""


def batches_of(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """Group conversations, in order, into batches of about a million characters."""
    batch: list[Conversation] = []
    size = 0
    for conversation in conversations:
        batch.append(conversation)
        size += sum(len(turn.text) for turn in conversation.turns)
        if size >= _CHARS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_batches(
    batches: Iterable[list[Conversation]], settings: EncodingSettings, num_workers: int | None
) -> Iterator[EncodedBatch]:
    """Yield each batch encoded, in order, by ``num_workers`` processes.

    None: all cores but the one that reads. A single worker is this process, and the tokenizer's
    own threads take all cores: on two cores that was a tenth faster than two processes.
    """
    workers = num_workers or max(1, len(os.sched_getaffinity(0)) - 1)
    batches = iter(batches)
    first = list(islice(batches, 2))
    if workers == 1 or len(first) < 2:
        encoder = BatchEncoder(settings)
        yield from map(encoder.encode, chain(first, batches))
    else:
        yield from _encode_in_processes(chain(first, batches), settings, workers)


class BatchEncoder:
    """Encodes batches in this process."""

    def __init__(self, settings: EncodingSettings) -> None:
        """Tokenize the constants."""
        self._settings = settings
        self._encoder = PairEncoder(
            settings.tokenizer, settings.model_max_length, settings.target_length
        )
        self._schema = row_schema(settings.tokenizer.vocab_size)

    def encode(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        """Encode some conversations."""
        reasons: Counter[str] = Counter()
        parts = _split(conversations, self._settings.eval_fraction)
        rows = {split: self._encoder.encode(part, reasons) for split, part in parts.items()}
        unk = self._settings.tokenizer.unk_id
        everything = [
            ids for r in rows.values() for column in (r.input_ids, r.labels) for ids in column
        ]
        return EncodedBatch(
            rows={split: self._record_batch(r) for split, r in rows.items()},
            reasons=reasons,
            unknown=sum(int(np.count_nonzero(ids == unk)) for ids in everything),
            lengths={
                name: np.bincount([len(ids) for r in rows.values() for ids in getattr(r, name)])
                for name in ("input_ids", "labels")
            },
        )

    def _record_batch(self, rows: Rows) -> pa.RecordBatch:
        columns = [
            self._list_array(rows.input_ids),
            self._list_array(rows.labels),
            pa.array(rows.conversation_ids, pa.string()),
            pa.array(rows.turns, pa.int32()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _list_array(self, column: list[Ids]) -> pa.Array:
        offsets = np.zeros(len(column) + 1, np.int32)
        np.cumsum([len(ids) for ids in column], out=offsets[1:])
        values = np.concatenate(column) if column else np.empty(0, self._encoder.dtype)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def is_eval(conversation_id: str, fraction: float) -> bool:
    """Tell whether a conversation belongs to the split eval: by a hash of its BASE alone."""
    digest = hashlib.sha256(split_part_id(conversation_id)[0].encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _split(
    conversations: Sequence[Conversation], fraction: float
) -> dict[str, Sequence[Conversation]]:
    if not fraction:
        return {TRAIN: conversations}
    evaluated = [is_eval(c.id, fraction) for c in conversations]
    return {
        TRAIN: [c for c, e in zip(conversations, evaluated, strict=True) if not e],
        EVAL: [c for c, e in zip(conversations, evaluated, strict=True) if e],
    }


_encoder: BatchEncoder | None = None  # one a worker process, made when it starts


def _start_worker(settings: EncodingSettings) -> None:
    global _encoder
    # A worker a core is enough; threads in each would fight for them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = BatchEncoder(settings)


def _end_with_parent() -> None:
    """End this process with its parent: one that was killed cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(conversations: list[Conversation]) -> EncodedBatch:
    assert _encoder is not None
    return _encoder.encode(conversations)


def _encode_in_processes(
    batches: Iterator[list[Conversation]], settings: EncodingSettings, workers: int
) -> Iterator[EncodedBatch]:
    pending: deque[Future[EncodedBatch]] = deque()
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (settings,)
    )
    try:
        for batch in batches:
            with _hidden_main():
                pending.append(pool.submit(_encode_in_worker, batch))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DuetError(
            "a tokenizing process died",
            where="prepare",
            got=error,
            do="free some memory, or give --num-workers 1",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep starting workers from importing the caller's main script, which they do not need.

    Without this, ``prepare`` called from a script without an ``if __name__`` guard would run that
    script again in each worker.
    """
    main: Any = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
