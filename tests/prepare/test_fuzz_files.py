"""Any records in any layout of the contract, packed, cut or broken: all that is whole is read.

A plain reading of each record by itself is the oracle. The file is read twice: in one go, and in
pieces so small that most texts are cut. ``just fuzz`` feeds it anew, like ``test_fuzz.py``.
"""

import bz2
import contextlib
import functools
import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.prepare.engines.ordering import OrderedChunks
from pipeline.prepare.files.anchors import Anchor, find_anchors
from pipeline.prepare.files.elements import NumberText
from pipeline.prepare.files.file_kind import recognize
from pipeline.prepare.files.json_values import Fault, Record, end_fault
from pipeline.prepare.files.planning import Planner, group_files
from pipeline.prepare.files.reading import find_files, read_files
from pipeline.prepare.files.segments import Piece, PieceReader, Segment, reading_at
from pipeline.prepare.files.sources import find_sources
from tests import forms
from tests.prepare import test_fuzz
from tests.prepare.helpers import cut_at

fuzz = settings(test_fuzz.fuzz, max_examples=test_fuzz.EXAMPLES or 100)
loads = functools.partial(json.loads, parse_int=NumberText, parse_float=NumberText)
TURN_KEYS = ("conversations", "conversation", "messages")


@dataclass(frozen=True)
class Layout:
    """How records stand in a text."""

    indent: int | None = None
    start: str = ""
    between: str = "\n"
    end: str = ""
    per_array: int = 0
    """So many records are an array; 0: none is."""

    def write(self, texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and where each record begins and ends in it."""
        text, places = self.start, list[tuple[int, int]]()
        for i, one in enumerate(texts):
            if i:
                is_new = self.per_array and i % self.per_array == 0
                text += "]\n[" if is_new else self.between
            places.append((len(text), len(text) + len(one)))
            text += one
        return text + self.end, places


LAYOUTS = {
    "lines": Layout(),
    "lines, trailing commas": Layout(between=",\n", end=",\n"),
    "pretty objects": Layout(indent=2, between="\n", end="\n"),
    "pretty objects, blank lines": Layout(indent=1, start="\n\n", between="\r\n\r\n"),
    "array": Layout(start="[", between=", ", end="]"),
    "array of lines": Layout(start="[\n", between=",\n", end="\n]\n"),
    "pretty array": Layout(indent=2, start="[\n", between=",\n", end="\n]"),
    "one array a record": Layout(start="[", end="]", per_array=1),
    "arrays behind one another": Layout(start="[", between=",", end="]", per_array=2),
    "arrays in an array": Layout(start="[[", between=",", end="]]"),
    "data": Layout(start='{"version": 1, "data": [', between=", ", end="]}"),
    "data on lines": Layout(start='{"data": [\n', between=",\n", end='\n], "end": 1}\n'),
}
ON_LINES = (
    *("lines", "lines, trailing commas", "pretty objects", "array of lines", "pretty array"),
    "data on lines",
)
"""In which a line begins with each record: so reading can resume behind a broken one."""

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "marked": lambda text: b"\xef\xbb\xbf" + text,
    "utf-16": lambda text: text.decode().encode("utf-16"),
    "utf-32": lambda text: text.decode().encode("utf-32"),
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "gzip of utf-16": lambda text: gzip.compress(text.decode().encode("utf-16")),
}


def is_turn(value: Any) -> bool:
    return isinstance(value, dict) and bool({"from", "role"} & set(value)) and no_turns_in(value)


def no_turns_in(value: dict[str, Any]) -> bool:
    return not any(key in value for key in TURN_KEYS)


def elements(value: Any) -> Iterator[Any]:
    """Yield the records that a value is made of, read by the contract's words."""
    inner: Any = None
    if isinstance(value, list) and not (value and is_turn(value[0])):
        inner = value
    elif isinstance(value, dict) and all(value.get(key) in (None, []) for key in TURN_KEYS):
        data = value.get("data")
        if isinstance(data, list) and data and all(isinstance(item, dict | list) for item in data):
            inner = [data] if is_turn(data[0]) else data
    if inner is None:
        yield value
    else:
        for item in inner:
            yield from elements(item)


def is_record(value: Any) -> bool:
    """Return whether a value is no more than one record, and begins with a bracket."""
    if isinstance(value, dict):
        return len(list(elements(value))) == 1
    return isinstance(value, list) and bool(value) and is_turn(value[0])


def whole_records(records: list[Any]) -> list[Any]:
    """Return the values that are one record each: of another, a piece may be whole."""
    found = [record for record in records if is_record(record) and not is_turn(record)]
    assume(found)
    return found


def text_of(record: Any, layout: Layout) -> str:
    """Return a record's JSON; in an array, it stands as far in as its indent says."""
    text = json.dumps(record, indent=layout.indent)
    if layout.indent and layout.start.startswith("["):
        text = "\n".join(" " * layout.indent + line for line in text.split("\n"))
    return text


Found = list[Record | Fault]


def check_order(found: Found) -> tuple[list[Any], list[Fault]]:
    """Return the values and the faults; all have positions one after another."""
    assert [item.position for item in found] == list(range(len(found)))
    values = [item.value for item in found if isinstance(item, Record)]
    return values, [item for item in found if isinstance(item, Fault)]


def read(folder: Path, content: bytes) -> tuple[list[Any], list[Fault]]:
    """Read a file in one go, and in pieces, which has to be the same."""
    path = folder / "x"
    path.write_bytes(content)
    whole: Found = [found for _, found in read_files(find_files([str(path)]))]
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 400)
        pieces = read_in_pieces(path)
    for one, other in zip(whole, pieces, strict=True):
        assert one == other
    return check_order(whole)


@dataclass(frozen=True)
class _Chunk:
    found: Found
    brackets: int
    resumed: bool
    content: dict[str, Any]
    is_checked: bool = True


class _ReadingEngine:
    """Reads segments and encodes nothing."""

    slots = 2

    def expect(self, num_bytes: int) -> None: ...
    def use(self, settings: Any) -> None: ...
    def close(self) -> None: ...

    def submit(self, task: Any, *args: Any) -> Callable[[], Any]:
        (segment,) = args
        chunk = self._read(segment)
        return lambda: chunk

    def _read(self, segment: Segment) -> _Chunk | None:
        (piece,) = segment.pieces
        reader = PieceReader(piece)
        if not reader.find_bounds():
            return None
        found = list(reader.values())
        if not reader.is_clean:
            return None
        content = {"first": None, "last": None, "digests": ""}
        return _Chunk(found, reader.brackets, reader.is_resumed, content)


def read_in_pieces(path: Path) -> Found:
    """Read a file as ``prepare`` does, but for what becomes of its records."""

    def find(piece: Piece, start: int, end: int, usual: int) -> Callable[[], list[Anchor]]:
        with reading_at(piece.source.path) as read_at:
            anchors = find_anchors(read_at, start, end, usual)
        return lambda: anchors

    sources = find_sources([str(path)])
    planner = Planner(sources, recognize(sources, [None]), find, find)
    engine: Any = _ReadingEngine()
    segments = planner.segments(group_files(sources))
    found, brackets, resumed = Found(), 0, False
    for done in OrderedChunks(engine, segments, dedup=False):
        chunk: Any = done.chunk
        for item in chunk.found:
            item.position = len(found)
            found.append(item)
        brackets, resumed = brackets + chunk.brackets, resumed or chunk.resumed
    fault = None if resumed else end_fault(brackets, len(found))
    return found if fault is None else [*found, fault]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


def told(error: Exception, content: bytes) -> AssertionError:
    return AssertionError(f"{type(error).__name__}: {error} on {content!r}")


@fuzz
@given(
    records=forms.RECORDS, layout=st.sampled_from([*LAYOUTS]), packing=st.sampled_from([*PACKINGS])
)
def test_any_layout_gives_all_values(
    folder: Path, records: list[Any], layout: str, packing: str
) -> None:
    how = LAYOUTS[layout]
    texts = [text_of(record, how) for record in records]
    text, _ = how.write(texts)
    assume(text.lstrip(" \t\r\n,")[:1] in ("[", "{"))
    try:
        expected = list(elements(loads(text)))
    except ValueError:  # more values than one
        size = how.per_array or 1
        groups = [",".join(texts[i : i + size]) for i in range(0, len(texts), size)]
        whole = [loads(f"[{group}]" if how.per_array else group) for group in groups]
        expected = [one for value in whole for one in elements(value)]
    content = PACKINGS[packing](text.encode())
    try:
        values, faults = read(folder, content)
        assert faults == []
        assert values == expected
    except Exception as error:
        raise told(error, content) from error


@fuzz
@given(
    records=forms.RECORDS,
    layout=st.sampled_from([*LAYOUTS]),
    packing=st.sampled_from([*PACKINGS]),
    share=st.floats(0, 1),
)
def test_any_text_that_is_cut_gives_what_was_whole(
    folder: Path, records: list[Any], layout: str, packing: str, share: float
) -> None:
    how, records = LAYOUTS[layout], whole_records(records)
    text, places = how.write([text_of(record, how) for record in records])
    at = int(share * len(text))
    assume(text[:at].lstrip(" \t\r\n,"))
    content = PACKINGS[packing](text[:at].encode())
    expected = [loads(text[start:end]) for start, end in places if end <= at]
    try:
        values, faults = read(folder, content)
        assert values == expected
        is_inside = any(start < at < end for start, end in places)
        assert len(faults) == 1 if is_inside else len(faults) <= 1
    except Exception as error:
        raise told(error, content) from error


def is_ended_by(text: str, end: str) -> bool:
    """Return whether what ends a file makes a broken record whole: nobody can tell then."""
    for size in range(1, len(end) + 1):
        with contextlib.suppress(ValueError):
            loads(text + end[:size])
            return True
    return False


@fuzz
@given(
    records=forms.RECORDS,
    layout=st.sampled_from(ON_LINES),
    packing=st.sampled_from([*PACKINGS]),
    data=st.data(),
)
def test_any_record_that_is_broken_costs_no_other(
    folder: Path, records: list[Any], layout: str, packing: str, data: st.DataObject
) -> None:
    how, records = LAYOUTS[layout], whole_records(records)
    texts = [text_of(record, how) for record in records]
    broken = data.draw(st.integers(0, len(texts) - 1))
    bare = texts[broken].rstrip()
    first = len(bare) - len(bare.lstrip()) + 1
    texts[broken] = bare[: data.draw(st.integers(first, len(bare) - 1))]
    assume(not is_ended_by(texts[broken], how.end or "]"))
    # A list that breaks off in its first turn leaves a bracket open, so that the end of the data is
    # not seen: what follows them is rejected, too.
    assume(not (layout.startswith("data") and texts[broken].lstrip().startswith("[")))
    content = PACKINGS[packing](how.write(texts)[0].encode())
    try:
        values, faults = read(folder, content)
        assert values == [loads(text) for i, text in enumerate(texts) if i != broken]
        assert len(faults) == 1
    except Exception as error:
        raise told(error, content) from error
