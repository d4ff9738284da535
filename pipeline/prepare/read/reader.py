"""A file to its records, as a stream: a file larger than memory works.

A JSON array is scanned one element at a time over a sliding window of text; JSON Lines are split
at newlines; Parquet comes in record batches. Whatever is wrong with a file, each whole record
before the fault comes out, then one ``Fault``; JSON Lines goes on with the next line.

Python's own ``json`` is used rather than a faster parser: it reads a real export at 260 MB/s,
keeps lone surrogates (which others refuse) for us to mend, and lets a number nobody reads be of
any size.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.prepare.cutting import mark_reach
from pipeline.prepare.found import Fault, Known, Record
from pipeline.prepare.read.formats import Content, Format, format_of, open_file
from pipeline.prepare.read.json_array import read_array
from pipeline.prepare.read.json_lines import read_lines
from pipeline.prepare.read.sources import Source
from pipeline.store.passages import Passage

# Where many records have the same mark, as repeats do, hashing behind each would take long.
_MOST_MISTAKEN = 4

Find = Callable[[Format, bytes], Passage | None]
"""Takes the kind of a file and the mark of a place in it; returns the passage so marked."""


def read_records(
    source: Source,
    advance: Callable[[int], None] = lambda _: None,
    find: Find | None = None,
) -> Iterator[Record | Fault | Known]:
    """Yield the records and faults of a file in order.

    Args:
        source: The file.
        advance: Hears of each byte read.
        find: Finds passages that are known. One that stands in the file letter for letter is
            yielded, and passed over if it is taken.

    Raises:
        InputError: The file cannot be opened.
    """
    kind = format_of(source.path)
    if kind == "parquet":
        yield from _read_parquet(source, advance)
        return
    read = read_array if kind == "json" else read_lines
    with open_file(source.path) as file:
        content = Content(file, advance)

        mistaken = Counter[bytes]()  # how often each mark was right, and the rest was not

        def find_whole(offset: int) -> Passage | None:
            mark = content.mark(offset, mark_reach())
            passage = find(kind, mark) if find is not None else None
            if passage is None or mistaken[mark] == _MOST_MISTAKEN:
                return None
            if content.sha256(offset, passage.size) == passage.sha256:
                return passage
            mistaken[mark] += 1
            return None

        for found in read(content, find_whole if find is not None else None):
            if isinstance(found, Known):
                behind = content.mark(found.offset + found.passage.size, mark_reach())
                found.is_followed_as_before = found.passage.mark_behind == behind.hex()
            yield found


def _read_parquet(source: Source, advance: Callable[[int], None]) -> Iterator[Record | Fault]:
    position, size = 0, source.path.stat().st_size
    try:
        with open_file(source.path) as opened, pq.ParquetFile(opened) as file:
            for batch in file.iter_batches(batch_size=256):
                for i in range(batch.num_rows):
                    yield _read_row(batch.slice(i, 1), position)
                    position += 1
                advance(size * batch.num_rows // file.metadata.num_rows)
    except (OSError, pa.ArrowException, ValueError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Fault(position, "broken_parquet", detail)


def _read_row(row: pa.RecordBatch, position: int) -> Record | Fault:
    try:
        (value,) = row.to_pylist()
        return Record(position, value, None)
    except (UnicodeDecodeError, ValueError) as error:
        return Fault(position, "invalid_utf8", str(error))
