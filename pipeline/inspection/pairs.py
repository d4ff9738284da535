"""Rows of a prepared folder as pairs of texts, and which of them are asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import InspectConfig
from pipeline.console.progress import Wait
from pipeline.console.units import spread
from pipeline.errors import InputError
from pipeline.inspection.search import search
from pipeline.store.arrow_numpy import as_numpy
from pipeline.store.manifest import Manifest
from pipeline.store.shards import open_split
from pipeline.template import HEADER, parse_encoder_text
from pipeline.tokenizer import TextTokenizer

_USUAL = 3  # rows, where nobody says how many
CUTS = ("history_cut", "question_cut", "answer_cut")
"""What can be seen of a pair; a header that was cut cannot."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A row."""

    split: str
    row: int
    conversation_id: str
    turn: int
    source: list[int]
    """Ids of the encoder's side."""
    target: list[int]
    """Ids of the decoder's."""
    encoder: str
    decoder: str
    turns_cut: int
    """Turns that were dropped from the history; 0 where that cannot be seen."""
    cuts: tuple[str, ...]
    """Those of ``CUTS`` that it has."""


class PairReader:
    """Reads the pairs of a split.

    Args:
        folder: The prepared folder.
        manifest: Its own.
        split: Which.
        tokenizer: The folder's.

    Raises:
        PreparedFolderError: No such split, or a damaged shard.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, tokenizer: TextTokenizer
    ) -> None:
        self.table = open_split(folder, manifest, split)
        self._split, self._tokenizer = split, tokenizer
        self._max_length = manifest.config.get("model_max_length")

    def read(self, row: int) -> Pair:
        """Return a row as a pair."""
        values = self.table.slice(row, 1).to_pylist()[0]
        source, target = values["input_ids"], values["labels"]
        encoder, decoder = self._tokenizer.decode_source(source), self._tokenizer.decode(target)
        turns_cut, is_question_cut = self._cut_turns(encoder, values["turn"], len(source))
        answer_cut = target[-1:] != [self._tokenizer.eos_id]
        has = (turns_cut > 0 and not is_question_cut, is_question_cut, answer_cut)
        return Pair(
            split=self._split,
            row=row,
            conversation_id=values["conversation_id"],
            turn=values["turn"],
            source=source,
            target=target,
            encoder=encoder,
            decoder=decoder,
            turns_cut=turns_cut,
            cuts=tuple(name for name, is_cut in zip(CUTS, has, strict=True) if is_cut),
        )

    def _cut_turns(self, encoder: str, turn: int, length: int) -> tuple[int, bool]:
        """Return how many turns the history lacks, and whether its last turn lacks its beginning.

        A turn is cut only where it is alone and fills the window; one that fits it to the token
        looks the same, which is rare.
        """
        parsed = parse_encoder_text(encoder)
        if parsed is None:  # another template
            return 0, False
        header, turns = parsed
        in_header = int(header.partition("\nTools: ")[0] != HEADER)
        missing = max(turn - in_header - len(turns), 0)
        return missing, len(turns) == 1 and length == self._max_length

    def chosen(self, config: InspectConfig) -> Iterator[Pair]:
        """Yield the pairs that are asked for.

        Raises:
            ConfigError: ``--grep`` is no regular expression.
            InputError: No pair is what is asked for.
        """
        rows, limit = self._rows(config), config.rows
        if limit is None and config.conversation is None:
            limit = _USUAL
        if config.grep is None and config.dropped is None:
            places = rows[:limit] if config.longest else [rows[i] for i in spread(len(rows), limit)]
            yield from map(self.read, places)
        else:
            yield from islice(self._matching(rows, config), limit)

    def _matching(self, rows: list[int], config: InspectConfig) -> Iterator[Pair]:
        """Yield the pairs that ``--grep`` and ``--dropped`` ask for."""
        with Wait("searching", len(rows), "pairs") as wait:
            if config.grep is None:
                found = wait.each(rows)
            else:
                found = search(self.table, rows, config.grep, self._tokenizer)
            for pair in map(self.read, found):
                if config.dropped is None or config.dropped in pair.cuts:
                    yield pair

    def _rows(self, config: InspectConfig) -> list[int]:
        """Return the rows to look at, in order."""
        rows = np.arange(self.table.num_rows)
        if config.conversation is not None:
            ids = self.table.column("conversation_id")
            rows = np.flatnonzero(_mask(pc.equal(ids, config.conversation)))
            if not len(rows) and self.table.num_rows:
                raise _no_conversation(config, ids)
        if config.longest:
            sides = (self.table.column(name) for name in ("input_ids", "labels"))
            encoder, decoder = (_numbers(pc.list_value_length(side)) for side in sides)
            lengths = encoder + decoder
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
        return [int(row) for row in rows]


def _mask(column: pa.ChunkedArray) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    return _numbers(pc.cast(column, pa.uint8())).astype(np.bool_)


def _numbers(column: pa.ChunkedArray) -> "np.ndarray[Any, np.dtype[np.int64]]":
    parts = [as_numpy(chunk) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def _no_conversation(config: InspectConfig, ids: pa.ChunkedArray) -> InputError:
    return InputError(
        "no such conversation",
        where=f"--conversation, split {config.split}",
        got=config.conversation,
        do=f"give an id as --jsonl shows it, such as {ids[0].as_py()}; a conversation in parts has "
        "that of its first part",
    )
