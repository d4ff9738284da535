"""Files to records: every kind, and every fault gives each whole record before it."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prepare.files import streams
from pipeline.prepare.files.json_values import Fault, Record
from pipeline.prepare.files.reading import find_files, read_files
from tests.conftest import record

NUMBERS = {"score": [0.5, 1e-5, -2.5e30, 12], "flags": [True, False, None], "n": 1e-7}
RAW = [
    one | NUMBERS for one in [record(f"id{i}", 'häl\n"{[]}\\ ,', "x" * i, "😀") for i in range(7)]
]
ROWS = [record("id0", "q", "a"), record("id1", "ü")]
RECORDS = json.loads(json.dumps(RAW), parse_int=str, parse_float=str)


def read(path: Path) -> list[Record | Fault]:
    return [found for _, found in read_files(find_files([str(path)]))]


def values(found: list[Record | Fault]) -> list[Any]:
    return [f.value for f in found if isinstance(f, Record)]


def faults(found: list[Record | Fault]) -> list[tuple[int, str]]:
    return [(f.position, f.reason) for f in found if isinstance(f, Fault)]


@pytest.fixture(params=[1, 5, 64, 1 << 20])
def chunk_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes are read at a time: every boundary must be survived."""
    monkeypatch.setattr(streams, "_CHUNK", request.param)
    return int(request.param)


def _with_long_window(data: bytes) -> bytes:
    """Pack as ``zstd --long=30`` does from a pipe: the size is not known."""
    settings = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True, hash_log=10)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "two gzip members": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd, long window": _with_long_window,
    "zstd, frames to skip": lambda data: (
        b"\x50\x2a\x4d\x18\x04\0\0\0size"
        + zstandard.compress(data[:50])
        + b"\x5f\x2a\x4d\x18\0\0\0\0"
        + zstandard.compress(data[50:])
    ),
    "xz": lzma.compress,
    "bz2": bz2.compress,
}
FORMS: dict[str, Callable[[Any], bytes]] = {
    "array": lambda value: json.dumps(value).encode(),
    "indented array": lambda value: json.dumps(value, indent=2, ensure_ascii=False).encode(),
    "array with a mark": lambda value: b"\xef\xbb\xbf \n" + json.dumps(value).encode() + b"\r\n ",
    "lines": lambda value: "\n".join(map(json.dumps, value)).encode(),
    "lines with a mark": lambda value: (
        b"\xef\xbb\xbf" + b"".join(json.dumps(v).encode() + b"\r\n\r\n" for v in value)
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packer", PACKERS)
def test_every_form_gives_the_records(
    tmp_path: Path, chunk_size: int, form: str, packer: str
) -> None:
    path = tmp_path / "wrong_suffix.txt"
    path.write_bytes(PACKERS[packer](FORMS[form](RAW)))
    found = read(path)
    assert values(found) == RECORDS
    assert [f.position for f in found] == list(range(7))


def test_parquet_gives_the_records(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.json", row_group_size=2)
    assert values(read(tmp_path / "x.json")) == ROWS


def test_a_cut_parquet_file_is_one_fault(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[:-20])
    assert faults(read(tmp_path / "x.parquet")) == [(0, "broken_parquet")]


def test_a_cut_arrow_stream_gives_the_batches_before_the_cut(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(tmp_path / "x"), table.schema) as out:
        out.write_table(table)
        middle = (tmp_path / "x").stat().st_size
        out.write_table(table)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[: middle + 40])
    found = read(tmp_path / "x")
    assert values(found) == ROWS
    assert faults(found) == [(len(ROWS), "broken_arrow")]


ARRAY = json.dumps(RAW, indent=1).encode()


@given(cut=st.integers(1, len(ARRAY) - 1))
@settings(deadline=None)
def test_an_array_cut_anywhere_gives_each_whole_record_and_one_fault(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.json"
    path.write_bytes(ARRAY[:cut])
    whole = 0
    while whole < len(RECORDS) and _end_of(whole) <= cut:
        whole += 1
    found = read(path)
    assert values(found) == RECORDS[:whole]
    assert faults(found) == [(whole, "cut_off")]


def _end_of(i: int) -> int:
    """Return how many bytes of ARRAY hold records 0 to i whole."""
    return len(json.dumps(RAW[: i + 1], indent=1).encode()) - len(b"\n]")


@pytest.mark.parametrize("packer", [p for p in PACKERS if p != "plain"])
def test_a_cut_compressed_file_gives_every_record_that_can_be_unpacked(
    tmp_path: Path, packer: str
) -> None:
    path = tmp_path / "x"
    noise = random.Random(0)
    many = [record(f"id{i}", noise.randbytes(200).hex(), str(i)) for i in range(3000)]
    data = PACKERS[packer](json.dumps(many).encode())
    path.write_bytes(data[: int(len(data) * 0.6)])
    found = read(path)
    assert faults(found) == [(len(found) - 1, "cut_off")]
    got = values(found)
    assert got == many[: len(got)]
    # bz2 packs in blocks of 900 kB; the others give nearly all that is there.
    assert len(got) > 1500 or packer == "bz2"


def test_a_damaged_gzip_gives_every_record_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    data = bytearray(gzip.compress(FORMS["lines"](RAW)))
    data[-5] ^= 1  # of the checksum, behind all records
    path.write_bytes(data)
    assert values(read(path)) == RECORDS
    assert faults(read(path)) == [(7, "cut_off")]


def test_a_gzip_may_be_padded_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    data = FORMS["array"](RAW)
    packed = [gzip.compress(part) for part in (data[:100], data[100:])]
    path.write_bytes(packed[0] + bytes(50_000) + packed[1] + bytes(50_000))
    assert (values(read(path)), faults(read(path))) == (RECORDS, [])


@pytest.mark.parametrize(
    ("text", "whole", "fault"),
    [
        ("[", 0, "cut_off"),
        ("[{}", 1, "cut_off"),
        ("[{},", 1, "cut_off"),
        ('[{}, {"a": tru', 1, "cut_off"),
        ('[{}, {"a": "\\ud8', 1, "cut_off"),
        ("[{}, 12", 2, "cut_off"),
        ("[{}] x", 1, "broken_json"),
        ("[{}, NaN, {}]", 1, "broken_json"),
        ("[{}, -Infinity, {}]", 1, "broken_json"),
        ('[{}, {"a": "\n"}, {}]', 1, "broken_json"),
        ("[{}]]", 1, "broken_json"),
    ],
)
def test_a_broken_array_gives_what_came_before(
    tmp_path: Path, text: str, whole: int, fault: str, chunk_size: int
) -> None:
    (tmp_path / "x.json").write_text(text)
    found = read(tmp_path / "x.json")
    assert (len(values(found)), faults(found)) == (whole, [(whole, fault)])


def test_broken_lines_are_faults_and_the_next_lines_go_on(tmp_path: Path, chunk_size: int) -> None:
    lines = [
        b'{"a": 1}',
        b"{",
        b'{"b": "\xff"}',
        b"",
        b'{"c": NaN}',
        b"[] []",
        b'{"d": 1e999}',
        b'{"e"',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    found = read(tmp_path / "x.jsonl")
    assert values(found) == [{"a": "1"}, {"d": "1e999"}]
    assert faults(found) == [
        (1, "broken_json"),
        (2, "invalid_utf8"),
        (3, "broken_json"),
        (5, "cut_off"),
    ]
    assert [f.text for f in found if isinstance(f, Fault)][:2] == ["{", '{"b": "\ufffd"}']


def test_a_record_of_invalid_utf8_is_left_out_alone(tmp_path: Path, chunk_size: int) -> None:
    (tmp_path / "x.json").write_bytes(b'[{"a": 1}, {"b": "\xff"}, {"c": 1}]')
    found = read(tmp_path / "x.json")
    assert (len(values(found)), faults(found)) == (2, [(1, "invalid_utf8")])


BROKEN = """[
  {"a": 1},
  {
    "b": [
      {"from": "x"}
      {"from": "y"}
    ]
  },
  {"c": 3},
  [{"from": "human", "value": "q"}]
"""


def test_reading_resumes_at_the_next_line_no_further_in(tmp_path: Path, chunk_size: int) -> None:
    (tmp_path / "x.json").write_text(BROKEN)
    found = read(tmp_path / "x.json")
    assert values(found) == [{"a": "1"}, {"c": "3"}, [{"from": "human", "value": "q"}]]
    assert faults(found) == [(1, "broken_json")], "and brackets left open are closed silently"


@pytest.mark.parametrize(
    "text",
    [
        "[{a}, {b}]\n[{c}]",
        "{a},\n{b},\n{c},\n",
        "[{a},]\n[[{b}], {c}]",
        '{{"data": [{a}, {b}, {c}], "version": 1}}',
        '{{"conversations": null, "messages": [], "data": [{a}, {b}, {c}]}}',
        "{a}{b}{c}",
    ],
)
def test_values_stand_one_after_another(tmp_path: Path, text: str, chunk_size: int) -> None:
    records = {name: json.dumps(record(name, name), indent=1) for name in "abc"}
    (tmp_path / "x.json").write_text(_filled(text, records))
    assert [value["id"] for value in values(read(tmp_path / "x.json"))] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "ids", "rejected"),
    [
        ('{"version": 1, "data": [{a}, {b}, {"id"', "ab", [(2, "cut_off")]),
        ('{"data": [{a}, {b}', "ab", [(2, "cut_off")]),
        ('{"data": [{a}, {b}],', "ab", [(2, "cut_off")]),
        ('{"data": [{a}, {b}], "end"', "ab", [(2, "cut_off")]),
        ('{"data": [{a}, {b}], "end": [1,', "ab", [(2, "cut_off")]),
        ('{"data": [\n{a},\n{"id": NaN},\n{b}\n], "end": 1}\n{c}', "abc", [(1, "broken_json")]),
        ('[{"data": [[{a}], {b}, {"x": y}\n]},\n{c}]', "abc", [(2, "broken_json")]),
        ('{"data": [{a}]\n{b}\n{c}', "abc", [(3, "cut_off")]),
        ('{"data": [{a}, {b}], "end": NaN}\n{c}', "abc", [(2, "broken_json")]),
        ('{"data": [{a}, {"x": "\udcff"}, {b}], "end": 1}\n{c}', "abc", [(1, "invalid_utf8")]),
        ('{"data": [{a}], "messages": [{"role": "user"\n{c}', "c", [(0, "broken_json")]),
        (
            '{"messages": [{"role": "user"}], "data": [{a}, {"x": y}]}\n{c}',
            "c",
            [(0, "broken_json")],
        ),
        ('{"data": [{"role": "user", "content": "q"}, {"ro', "", [(0, "cut_off")]),
    ],
)
def test_a_broken_object_gives_each_whole_record_of_its_data(
    tmp_path: Path, text: str, ids: str, rejected: list[tuple[int, str]], chunk_size: int
) -> None:
    records = {name: json.dumps(record(name, name)) for name in "abc"}
    (tmp_path / "x.json").write_text(_filled(text, records), errors="surrogateescape")
    found = read(tmp_path / "x.json")
    assert [value["id"] for value in values(found)] == list(ids)
    assert faults(found) == rejected


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_of_records_that_is_cut_anywhere_gives_those_before(
    tmp_path: Path, indent: int | None
) -> None:
    many = [record(str(i), f"q {i}", "a") for i in range(4)]
    text = json.dumps({"version": 1, "data": many}, indent=indent)
    ends = [text.index(f'"q {i}"') for i in range(4)]
    for cut in range(text.index("[") + 2, len(text), 7):
        (tmp_path / "x.json").write_text(text[:cut])
        found = read(tmp_path / "x.json")
        assert values(found) == many[: len(values(found))]
        assert len(values(found)) >= sum(end < cut for end in ends) - 1
        assert faults(found) == [(len(values(found)), "cut_off")]


def _filled(text: str, records: dict[str, str]) -> str:
    text = text.replace("{{", "{").replace("}}", "}")
    for name, value in records.items():
        text = text.replace("{" + name + "}", value)
    return text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-le"])
def test_text_in_other_encodings_is_read_by_its_mark(tmp_path: Path, encoding: str) -> None:
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    text = mark + json.dumps(RAW, ensure_ascii=False)
    (tmp_path / "x.json").write_bytes(text.encode(encoding))
    assert values(read(tmp_path / "x.json")) == RECORDS


def test_arrow_files_and_streams_give_the_records(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    for name, start in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        with start(str(tmp_path / name), table.schema) as out:
            out.write_table(table)
        assert values(read(tmp_path / name)) == ROWS


def test_what_readers_differ_on(tmp_path: Path) -> None:
    digits = "9" * 5000
    text = f'[{{"a": 1, "a": {digits}}}, "\\ud800", "\\ud83d\\ude00"]'
    (tmp_path / "x.json").write_text(text)
    assert values(read(tmp_path / "x.json")) == [{"a": digits}, "\ud800", "😀"]


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_record_nested_too_deep_is_passed_over(tmp_path: Path, form: str) -> None:
    # The brackets in a string that is larger than the window count for nothing.
    deep = '{"a":' * 200_000 + '"' + "}}}" * 500_000 + '"' + "}" * 200_000
    text = f"[{{}}, {deep}, {{}}]" if form == "array" else f"{{}}\n{deep}\n{{}}"
    (tmp_path / "x.json").write_text(text)
    found = read(tmp_path / "x.json")
    assert (values(found), faults(found)) == ([{}, {}], [(1, "wrong_shape")])


def test_a_record_larger_than_the_window_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_CHUNK", 1000)
    big = [record("a", "x" * 100_000, "y"), record("b", "z", "w")]
    (tmp_path / "x.json").write_text(json.dumps(big))
    assert values(read(tmp_path / "x.json")) == big


def test_only_a_window_of_a_large_file_is_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "x.json"
    one = json.dumps(record("a", "x" * 10_000))
    with path.open("w") as file:
        file.write("[" + ",".join([one] * 3_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_files(find_files([str(path)]))) == 3_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 30_000_000
    assert peak < 12_000_000


def test_a_record_keeps_its_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[ {"a" : 1.50} ]')
    (found,) = read(tmp_path / "x.json")
    assert isinstance(found, Record)
    assert found.text == '{"a" : 1.50}'


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_data_that_is_a_list_of_turns_is_one_record(tmp_path: Path, kind: str) -> None:
    turns, path = ROWS[0]["conversations"], tmp_path / "x"
    if kind == "json":
        path.write_text(json.dumps({"version": "1", "data": turns}))
    else:
        pq.write_table(pa.Table.from_pylist([{"data": turns}]), path)
    assert values(read(path)) == [turns]


@pytest.mark.parametrize("between", ["", "\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_files_with_byte_order_marks_behind_one_another_are_read_whole(
    tmp_path: Path, encoding: str, between: str, chunk_size: int
) -> None:
    files = [f"\ufeff{json.dumps([row])}" for row in ROWS]
    (tmp_path / "x").write_bytes(between.join(files).encode(encoding))
    assert values(read(tmp_path / "x")) == ROWS
