"""Files that did not change are not opened again, and what comes out is what a cold run gives."""

import time
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.prepare.files import streams
from tests.prepare.helpers import contents, cut_at, generated, write


def prepared(model: Path, output: Path, *paths: Path) -> Path:
    config = PrepareConfig(
        data_path=tuple(map(str, paths)),
        model_name_or_path=str(model),
        output_dir=str(output),
        num_workers=1,
        model_max_length=128,
    )
    folder = pipeline.prepare(config)
    assert isinstance(folder, Path)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the input files that are opened."""
    names = list[str]()
    open_file = streams.open_file

    def note(path: Any) -> Any:
        names.append(path.name)
        return open_file(path)

    for module in ("streams", "file_kind", "tables"):
        monkeypatch.setattr(f"pipeline.prepare.files.{module}.open_file", note)
    return names


def test_of_two_files_of_which_one_is_new_the_other_is_not_opened(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    cut_at(monkeypatch)
    old, new = write(tmp_path / "old.jsonl", generated(100, 1)), tmp_path / "new.jsonl"
    time.sleep(0.1)  # else it might have changed within the clock's last tick
    prepared(tiny_t5, tmp_path / "out", old)
    assert "old.jsonl" in opened
    opened.clear()
    write(new, generated(20, 2))
    both = prepared(tiny_t5, tmp_path / "out", old, new)
    assert set(opened) == {"new.jsonl"}
    assert contents(both) == contents(prepared(tiny_t5, tmp_path / "cold", old, new))


@pytest.mark.parametrize("nameless", [False, True])
def test_new_records_in_the_middle_make_few_chunks_anew(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    cut_at(monkeypatch)
    records = generated(400, 1)
    if nameless:
        for record in records:
            del record["id"]
    path = write(tmp_path / "x.jsonl", records)
    prepared(tiny_t5, tmp_path / "out", path)
    before = {p.parent.name for p in (tmp_path / "out" / ".chunks").glob("*/*/chunk.json")}
    assert len(before) > 15
    write(path, records[:200] + generated(4, 2) + records[200:])
    grown = prepared(tiny_t5, tmp_path / "out", path)
    after = {p.parent.name for p in (tmp_path / "out" / ".chunks").glob("*/*/chunk.json")}
    assert 1 <= len(after - before) <= 2
    assert contents(grown) == contents(prepared(tiny_t5, tmp_path / "cold", path))
