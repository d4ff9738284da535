"""Text that was read before: passed over where it stands again, and never where that would show."""

import copy
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.prepare.found import Known
from pipeline.prepare.read import reading
from pipeline.prepare.read.formats import Content
from pipeline.store.chunk_cache import PartStore, iterate_parts
from tests.conftest import record
from tests.prepare.helpers import WORDS, contents, cut_at, generated, leftovers, write

Prepare = Callable[..., dict[str, bytes]]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(monkeypatch)


@pytest.fixture
def prepare(tiny_t5: Path, tmp_path: Path) -> Prepare:
    """Return a function that prepares some paths and returns every file of the result."""

    def run(*paths: Path, output: str = "processed", **options: Any) -> dict[str, bytes]:
        config = PrepareConfig(
            data_path=tuple(map(str, paths)),
            model_name_or_path=str(tiny_t5),
            output_dir=str(tmp_path / output),
            **{"num_workers": 1, "eval_fraction": 0.2, "model_max_length": 128} | options,
        )
        folder = pipeline.prepare(config)
        assert isinstance(folder, Path)
        return contents(folder)

    return run


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Known]:
    """Return a list that takes note of each passage that is passed over."""
    found: list[Known] = []
    take = reading.Reading._take

    def note(self: reading.Reading, known: Known) -> None:
        found.append(known)
        take(self, known)

    monkeypatch.setattr(reading.Reading, "_take", note)
    return found


def passages(tmp_path: Path, output: str = "processed") -> list[Path]:
    return sorted((tmp_path / output / ".parts" / "passages").glob("*.json"))


# --- Any change gives what a cold run gives -------------------------------------------------------


def rich(draw: random.Random, count: int, name: str) -> list[Any]:
    """Return records of every kind: parts that join, repeats, rejected ones, some without an id."""
    records: list[Any] = []
    while len(records) < count:
        base, kind = f"{name}{len(records)}", draw.random()
        texts = [
            draw.choice(("", "é ", "😀", "“", "\t")) + " ".join(draw.choices(WORDS, k=k))
            for k in (draw.randint(1, 25) for _ in range(draw.choice((2, 4, 6))))
        ]
        if kind < 0.3:  # a conversation in parts, the second of which may repeat a turn
            cut = draw.randrange(1, len(texts))
            start = draw.choice((cut, cut - 1))
            records += [record(f"{base}_0", *texts[:cut]), part(f"{base}_{start}", start, texts)]
        elif kind < 0.4 and records:
            records.append(copy.deepcopy(draw.choice(records)))
        elif kind < 0.55:
            bad = [{"id": base}, record(base), {"id": base, "conversations": [{"from": "x"}]}, 3]
            records.append(draw.choice(bad))
        elif kind < 0.56:
            records.append({"conversations": record("", *texts)["conversations"]})
        else:
            records.append(record(base, *texts))
    return records


def part(name: str, start: int, texts: list[str]) -> Any:
    """Return the part of a conversation from a turn on."""
    whole = record(name, *texts)
    return whole | {"conversations": whole["conversations"][start:]}


def changed(draw: random.Random, records: list[Any]) -> list[Any]:
    """Return records with a change somewhere."""
    at, size = draw.randrange(len(records)), draw.randint(1, 20)
    some, kind = records[at : at + size], draw.randrange(7)
    if kind == 0:
        return records[:at] + rich(draw, size, f"new{at}") + records[at:]
    if kind == 1:
        return records[:at] + records[at + size :]
    if kind == 2:
        return records[:at] + records[at + size :] + some
    if kind == 3:  # what was first becomes a repeat
        return some + records
    if kind == 4:
        return records + rich(draw, size, "end")
    if kind == 5:
        return records[at:] + records[:at]
    # A conversation goes on where it ended before.
    follow = [
        r
        for r in records
        if isinstance(r, dict) and r.get("conversations") and str(r.get("id")).endswith("_0")
    ]
    if not follow:
        return records[1:]
    chosen = draw.choice(follow)
    turns = len(chosen["conversations"])
    more = part(f"{chosen['id'][:-2]}_{turns}", turns, ["."] * turns + ["more", "and more"])
    at = max(i for i, r in enumerate(records) if r is chosen) + 1
    return [*records[:at], more, *records[at:]]


def as_lines(records: list[Any]) -> bytes:
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    return text.replace("\n", "\n\n", 3).encode()


def as_array(records: list[Any]) -> bytes:
    return json.dumps(records, ensure_ascii=False, indent=1).encode()


def as_array_with_bom(records: list[Any]) -> bytes:
    return b"\xef\xbb\xbf" + json.dumps(records).encode()


FORMS = [as_lines, as_array, as_array_with_bom]


def check_changes(
    prepare: Prepare, path: Path, taken: list[Known], seed: int, changes: int
) -> None:
    """Prepare records with one change after another, warm and cold, in parts of a few records."""
    draw, form = random.Random(seed), FORMS[seed % 3]
    records = rich(draw, 120, "a")
    options = {"dedup": seed % 5 != 4, "join_parts": seed % 7 != 6}
    path.write_bytes(form(records))
    prepare(path, **options)
    for i in range(changes):
        records = changed(draw, records)
        path.write_bytes(form(records))
        warm = prepare(path, **options)
        assert warm == prepare(path, output=f"cold{i}", **options)
    assert taken


@pytest.mark.parametrize("seed", range(3))
def test_a_change_gives_what_a_cold_run_gives(
    prepare: Prepare,
    tmp_path: Path,
    taken: list[Known],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    cut_at(monkeypatch, (700, 2_500, 6_000))
    check_changes(prepare, tmp_path / "x.json", taken, seed, changes=1)
    assert leftovers(tmp_path / "processed") == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_changes_give_what_cold_runs_give(
    prepare: Prepare,
    tmp_path: Path,
    taken: list[Known],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    cut_at(monkeypatch, (700, 2_500, 6_000))
    check_changes(prepare, tmp_path / "x.json", taken, seed, changes=4)


# --- What is passed over --------------------------------------------------------------------------


def test_what_did_not_change_is_not_parsed(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = generated(200, 1)
    path = write(tmp_path / "x.jsonl", old)
    prepare(path)
    kept = len(passages(tmp_path))
    assert kept == len(list(iterate_parts(tmp_path / "processed" / ".parts"))) - 1  # not the last
    parsed = []
    parse = reading.parse_record

    def note(value: Any, *args: Any, **options: Any) -> Any:
        parsed.append(value["id"])
        return parse(value, *args, **options)

    monkeypatch.setattr(reading, "parse_record", note)
    write(path, [*old[:100], *generated(2, 2), *old[100:]])
    warm = prepare(path)
    # Two parts or three, and after each passage one record.
    assert len(set(parsed)) < 3 * 200 / kept + kept + 2
    del parsed[:]
    assert prepare(path, output="cold") == warm
    assert len(parsed) == 202


@pytest.mark.parametrize(
    "change", [{"dedup": False}, {"join_parts": False}, {"role": ("narrator=assistant",)}]
)
def test_what_was_read_under_other_options_is_not_known(
    prepare: Prepare, tmp_path: Path, taken: list[Known], change: dict[str, Any]
) -> None:
    path = write(tmp_path / "x.jsonl", generated(100, 3))
    prepare(path)
    prepare(path, **change)
    assert not taken
    write(path, generated(101, 3))
    prepare(path, **change)
    assert taken


def test_a_packed_file_is_read_whole(prepare: Prepare, tmp_path: Path, taken: list[Known]) -> None:
    records = generated(100, 4)
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(as_lines(records)))
    first = prepare(packed)
    assert passages(tmp_path) == []
    assert prepare(packed, output="again") == first
    assert not taken


def test_lines_that_look_like_a_piece_of_an_array_are_none(
    prepare: Prepare, tmp_path: Path, taken: list[Known]
) -> None:
    records = generated(100, 5)
    array, lines = tmp_path / "x.json", tmp_path / "y.jsonl"
    body = ",\n".join(json.dumps(r) for r in records)
    array.write_text(f"[{body}]")
    prepare(array)
    assert passages(tmp_path)
    lines.write_text(f"{json.dumps(record('first', 'q', 'a'))}\n{body}\n")
    warm = prepare(lines)
    assert not taken
    assert json.loads(warm["manifest.json"])["counts"]["rejected"] == 99
    assert warm == prepare(lines, output="cold")


# --- Borders --------------------------------------------------------------------------------------


def test_a_record_that_goes_on_with_a_passage_joins_it(
    prepare: Prepare, tmp_path: Path, taken: list[Known]
) -> None:
    records = [r | {"id": f"{i:07}_0"} for i, r in enumerate(generated(100, 6))]
    path = write(tmp_path / "x.jsonl", records)
    prepare(path)
    write(path, records[1:])
    prepare(path)
    ends = [known.next_conversation.id for known in taken if known.next_conversation]
    assert len(ends) >= 3
    del taken[:]
    at = [r["id"] for r in records].index(ends[1])
    before = records[at - 1]
    more = part(f"{before['id'][:-2]}_4", 4, ["."] * 4 + ["more", "and more"])
    write(path, [*records[:at], more, *records[at:]])
    warm = prepare(path)
    assert len(taken) >= len(ends) - 1
    assert warm == prepare(path, output="cold")
    assert json.loads(warm["manifest.json"])["counts"]["conversations"] == 100


def test_the_first_of_two_repeats_is_kept(
    prepare: Prepare, tmp_path: Path, taken: list[Known]
) -> None:
    records = generated(100, 7)
    path = write(tmp_path / "x.jsonl", records)
    prepare(path)
    # One that stands in a passage further down comes first now.
    write(path, [records[70] | {"id": "first"}, *records])
    warm = prepare(path)
    assert taken
    assert warm == prepare(path, output="cold")
    assert json.loads(warm["manifest.json"])["counts"]["reasons"]["duplicate"] == 1


def only_full(patch: pytest.MonkeyPatch) -> None:
    """Cut parts where they are full, and nowhere else."""
    cut_at(patch, (4_000, 1 << 40, 4_000))


def test_a_part_that_only_a_long_neighbour_ended_is_not_taken_without_it(
    prepare: Prepare, tmp_path: Path, taken: list[Known], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_full(monkeypatch)
    records = generated(60, 8)
    path = write(tmp_path / "x.jsonl", records)
    prepare(path)
    assert len(passages(tmp_path)) > 3
    for size in (1, 5, 40):
        short = record(f"short{size}", "q", "a" * size)
        write(path, [*records[:30], short, *records[30:]])
        warm = prepare(path)
        assert warm == prepare(path, output=f"cold{size}")
    assert taken


@pytest.mark.parametrize("dedup", [True, False])
def test_a_part_that_a_repeat_does_not_end_goes_on(
    prepare: Prepare,
    tmp_path: Path,
    taken: list[Known],
    monkeypatch: pytest.MonkeyPatch,
    dedup: bool,
) -> None:
    only_full(monkeypatch)
    records = generated(60, 8)
    path = write(tmp_path / "x.jsonl", records)
    prepare(path, dedup=dedup)
    assert len(passages(tmp_path)) > 3
    # Behind a full part: a repeat of an early record, then one so short that it has room in it.
    write(path, records[:-1])
    prepare(path, dedup=dedup)
    for known in taken[:3]:
        assert known.next_conversation is not None
        at = [r["id"] for r in records].index(known.next_conversation.id)
        again = [records[0] | {"id": "again"}, record(f"short{at}", "q", "a")]
        write(path, [*records[:at], *again, *records[at:]])
        warm = prepare(path, dedup=dedup)
        assert warm == prepare(path, output=f"cold{at}", dedup=dedup)
    assert taken


def test_where_what_ended_a_part_became_a_repeat_all_is_read_again(
    prepare: Prepare,
    tmp_path: Path,
    taken: list[Known],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut_at(monkeypatch, (1_000, 6_000, 4_000))  # some parts end where they are full
    records = generated(120, 8)
    path = write(tmp_path / "x.jsonl", records)
    prepare(path)
    write(path, records[:-1])
    prepare(path)
    behind = [k.next_conversation for k in taken if not k.passage.ends_part]
    reread = 0
    for conversation in behind:
        assert conversation is not None
        at = [r["id"] for r in records].index(conversation.id) + 1
        early, short = records[at - 1] | {"id": "early"}, record(f"short{at}", "q", "a")
        write(path, [early, *records[:at], short, *records[at:]])
        capsys.readouterr()
        warm = prepare(path)
        reread += "all of it is read again" in capsys.readouterr().err
        assert warm == prepare(path, output=f"cold{at}")
    assert reread


# --- What looks alike -----------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that takes note of how many bytes are hashed at a time."""
    sizes: list[int] = []
    sha256 = Content.sha256

    def note(self: Content, start: int, size: int) -> str:
        sizes.append(size)
        return sha256(self, start, size)

    monkeypatch.setattr(Content, "sha256", note)
    return sizes


def alike(count: int, size: int) -> list[Any]:
    """Return records that begin with the same bytes, so many at least."""
    system = {"from": "system", "value": "a" * size}
    return [
        {"conversations": [system, *r["conversations"]], "id": r["id"]}
        for r in generated(count, 12)
    ]


def prepared_again(
    prepare: Prepare, path: Path, hashed: list[int], before: bytes, after: bytes
) -> dict[str, bytes]:
    """Prepare a file, and again when it has changed; only what that hashes is in the list then."""
    path.write_bytes(before)
    prepare(path)
    path.write_bytes(after)
    del hashed[:]
    return prepare(path)


@pytest.mark.parametrize("form", FORMS)
def test_records_that_begin_alike_are_told_apart(
    prepare: Prepare,
    tmp_path: Path,
    taken: list[Known],
    hashed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    form: Callable[[list[Any]], bytes],
) -> None:
    cut_at(monkeypatch, (80_000, 90_000, 200_000))
    path, records = tmp_path / "x.json", alike(600, 1_000)
    warm = prepared_again(prepare, path, hashed, form(records), form(records[:-1]))
    assert len(taken) > 3
    assert len(hashed) < 3 * len(taken)
    assert warm == prepare(path, output="cold")


@pytest.mark.parametrize("form", FORMS)
def test_records_that_a_mark_does_not_tell_apart_are_not_all_hashed(
    prepare: Prepare,
    tmp_path: Path,
    hashed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    form: Callable[[list[Any]], bytes],
) -> None:
    cut_at(monkeypatch, (20_000, 30_000, 40_000))
    path, records = tmp_path / "x.json", alike(200, 1_000)
    warm = prepared_again(prepare, path, hashed, form(records), form(records[1:]))
    assert len(hashed) < 30
    assert warm == prepare(path, output="cold")


def test_a_mark_behind_the_start_is_no_byte_order_mark(
    prepare: Prepare, tmp_path: Path, taken: list[Known]
) -> None:
    records = generated(100, 14)
    path = tmp_path / "x.json"
    path.write_bytes(as_array(records))
    prepare(path)
    content = path.read_bytes()
    path.write_bytes(as_array(records[:-1]))
    prepare(path)
    at = taken[2].offset
    path.write_bytes(content[:at] + b"\xef\xbb\xbf" + content[at:])
    warm = prepare(path)
    counts = json.loads(warm["manifest.json"])["counts"]
    assert counts["rejected"] == 1
    assert counts["reasons"]["broken_json"] == 1
    assert warm == prepare(path, output="cold")


# --- What is lost ---------------------------------------------------------------------------------


def test_a_damaged_passage_is_read_again(
    prepare: Prepare, tmp_path: Path, taken: list[Known]
) -> None:
    records = generated(100, 9)
    path = write(tmp_path / "x.jsonl", records)
    prepare(path)
    files = passages(tmp_path)
    for file in files:
        file.write_bytes(file.read_bytes().replace(b'"records": ', b'"records": 1'))
    write(path, records[:-1])
    warm = prepare(path)
    assert not taken
    assert warm == prepare(path, output="cold")
    write(path, records[:-2])  # and is kept again
    prepare(path)
    assert len(taken) >= len(files) - 2


def test_a_part_that_goes_while_its_passage_is_taken_has_all_read_again(
    prepare: Prepare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = generated(100, 10)
    path = write(tmp_path / "x.jsonl", records)
    prepare(path)
    write(path, records[:-1])
    pin, lost = PartStore.pin, []

    def lose(self: PartStore, info: Any) -> None:
        if not lost:
            lost.append(info.key)
            raise FileNotFoundError
        pin(self, info)

    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "pin", lose)
        warm = prepare(path)
    assert lost
    assert "all of it is read again" in capsys.readouterr().err
    assert warm == prepare(path, output="cold")
    assert leftovers(tmp_path / "processed") == []


def test_a_file_that_changes_while_it_is_read_leaves_no_passage(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = generated(100, 11)
    path = write(tmp_path / "x.jsonl", records)
    conversation, seen = reading.Reading._conversation, []

    def change(self: reading.Reading, *args: Any) -> Any:
        seen.append(args)
        if len(seen) == 3:
            with path.open("ab") as file:
                file.write(as_lines([record("late", "q", "a")]))
        return conversation(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(reading.Reading, "_conversation", change)
        with pytest.raises(pipeline.DuetError, match="changed while it was read"):
            prepare(path)
    assert passages(tmp_path) == []
    assert prepare(path) == prepare(path, output="cold")
