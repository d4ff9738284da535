r"""``inspect --grep``: which rows hold a text.

A row of a lossless tokenizer is its pieces, one after another: Arrow looks them up for many rows
at once, at ten times the speed of ``TextTokenizer.decode``, and finds a text without special
characters in them before anything else is done. Other tokenizers decode row by row.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.console.progress import advance
from pipeline.errors import ConfigError
from pipeline.json_object import read_json_object
from pipeline.store.arrow_numpy import as_numpy, numbers, strings
from pipeline.tokenizer import TextTokenizer
from pipeline.tokenizer.lossless import vocabulary_of_lossless
from pipeline.tokenizer.vocabulary import SPACE

_AT_ONCE = 256  # rows: their texts stay in the processor's cache
_SPECIAL = re.compile(r"[][.^$*+?{}\\|()\n\t]")
"""What makes a regular expression more than a text that stands within a line."""
Found = Iterable[tuple[int, str, str]]
"""Rows with the texts of their encoder and their decoder."""


def search(
    table: pa.Table, rows: Sequence[int], grep: str, tokenizer: TextTokenizer
) -> Iterator[int]:
    """Yield the rows whose text a regular expression matches somewhere, in the order given.

    Args:
        table: The split.
        rows: Which of its rows to look at.
        grep: The regular expression; the text is the encoder's, a newline, and the decoder's.
        tokenizer: The folder's.

    Raises:
        ConfigError: It is no regular expression.
    """
    pattern = _pattern(grep)
    literal = None if _SPECIAL.search(grep) else grep
    pieces = _pieces(tokenizer)
    for first in range(0, len(rows), _AT_ONCE):
        block = rows[first : first + _AT_ONCE]
        sources, targets = _sides(table, block)
        if pieces is None:
            found = _decoded(block, sources, targets, tokenizer)
        else:
            found = _joined(block, _texts(sources, pieces), _texts(targets, pieces), literal)
        for row, encoder, decoder in found:
            if pattern.search(f"{encoder}\n{decoder}"):
                yield row
        advance(len(block))


def _sides(table: pa.Table, rows: Sequence[int]) -> list[pa.ListArray]:
    """Return the encoder's and the decoder's ids of some rows."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)  # taking them copies all first
    columns = table.select(["input_ids", "labels"])
    found = pa.concat_tables([columns.slice(run[0], len(run)) for run in runs])
    return [column.combine_chunks() for column in found.columns]


def _decoded(
    rows: Sequence[int], sources: pa.ListArray, targets: pa.ListArray, tokenizer: TextTokenizer
) -> Found:
    """Return the texts of rows as the tokenizer gives them."""
    encoder = map(tokenizer.decode_source, sources.to_pylist())
    return zip(rows, encoder, map(tokenizer.decode, targets.to_pylist()), strict=True)


def _joined(
    rows: Sequence[int], sources: pa.StringArray, targets: pa.StringArray, literal: str | None
) -> Found:
    """Return the same of joined pieces, without rows that cannot hold ``literal``."""
    sides = [sources, targets]
    if literal is not None:
        may_hold = pc.or_(*(pc.match_substring(side, literal) for side in sides))
        rows = [*compress(rows, may_hold.to_pylist())]
        sides = [side.filter(may_hold) for side in sides]
    encoder, decoder = (map(_without_dummies, side.to_pylist()) for side in sides)
    return zip(rows, encoder, decoder, strict=True)


def _pieces(tokenizer: TextTokenizer) -> pa.StringArray | None:
    """Return what each id stands for in a text, and nothing for ids that are none.

    None where a row is not just its pieces: another tokenizer or template, or pieces of bytes.
    """
    if not tokenizer.is_lossless or tokenizer.template is not None:
        return None
    if vocabulary_of_lossless(read_json_object(tokenizer.files["tokenizer.json"])).has_bytes:
        return None
    backend = tokenizer.backend
    added = backend.get_added_tokens_decoder()
    pieces = [""] * (tokenizer.vocab_size + 1)
    for i in range(tokenizer.vocab_size):
        if i not in added or not added[i].special:
            pieces[i] = (backend.id_to_token(i) or "").replace(SPACE, " ")
    return strings(pieces)


def _texts(ids: pa.ListArray, pieces: pa.StringArray) -> pa.StringArray:
    """Return the pieces of each row as one text: in memory they stand one after another."""
    known = np.minimum(as_numpy(ids.flatten()).astype(np.int32), len(pieces) - 1)
    _, ends, data = pieces.take(numbers(known)).buffers()
    starts = as_numpy(ids.offsets)
    offsets = np.frombuffer(ends, np.int32)[starts - starts[0]]
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), data)


def _without_dummies(text: str) -> str:
    r"""Return a row's text without the space that the tokenizer puts before each line.

    >>> _without_dummies(" a\n b\t  c")
    'a\nb\t c'
    """
    return text.replace("\n ", "\n").replace("\t ", "\t").removeprefix(" ")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(
            "not a regular expression",
            where="--grep",
            got=f"{text}: {error}",
            do="put a \\ before a character that means itself",
        ) from error
