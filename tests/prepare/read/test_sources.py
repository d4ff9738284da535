"""Paths to files, in order, with a line for each file that is passed over."""

import json
import os
from pathlib import Path

import pytest
from pipeline.prepare.read.sources import Source, find_sources

from pipeline.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.json", "a.jsonl", "c[1].json"):
        (tmp_path / name).write_text('[{"id": 1}]')
    (tmp_path / "README.md").write_text("# words")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.json").write_text("[]")
    return tmp_path


def names(*paths: str) -> list[str]:
    return [source.name for source in find_sources(paths)]


def test_a_folder_gives_its_files_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(str(folder)) == ["a.jsonl", "b.json", "c[1].json"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("note: passed over") for line in lines)


def test_a_path_that_exists_is_no_glob(folder: Path) -> None:
    assert names(str(folder / "c[1].json")) == ["c[1].json"]


def test_a_glob_gives_its_matches_sorted_and_paths_keep_their_order(folder: Path) -> None:
    assert names(str(folder / "*.json*"), str(folder / "sub")) == [
        "a.jsonl",
        "b.json",
        "c[1].json",
        "d.json",
    ]
    assert names(str(folder / "**" / "d*")) == ["d.json"]


def test_files_of_one_name_are_told_apart(folder: Path) -> None:
    (folder / "sub" / "b.json").write_text("[]")
    found = names(str(folder / "b.json"), str(folder / "sub" / "b.json"))
    assert found == [f"{folder.name}/b.json", "sub/b.json"]


def test_a_named_file_is_read_whatever_it_is(folder: Path) -> None:
    assert names(str(folder / "README.md")) == ["README.md"]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("nothing.json", "no such path"),
        ("*.nothing", "a glob that matches nothing"),
        ("README*", "a glob that matches nothing"),
        ("empty", "a folder without a file of records"),
        ("x" * 300, "a path cannot be read"),
    ],
)
def test_what_is_not_there_is_an_error(folder: Path, path: str, what: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=what):
        find_sources([str(folder / path)])


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.json", "a"),
        ("a.b.jsonl.gz", "a.b"),
        ("a.PARQUET", "a"),
        ("a.zst", "a"),
        ("a.txt", "a.txt"),
        (".json", ".json"),
        ("a.json.json", "a.json"),
    ],
)
def test_the_stem_drops_format_and_compression(name: str, stem: str) -> None:
    assert Source(Path(name), name).stem == stem


def test_a_file_name_that_is_no_utf8_can_be_written_about(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")
    Path(path).write_text("[]")
    assert json.dumps(names(path), ensure_ascii=False).encode("utf-8")


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(InputError, match="an empty name"):
        find_sources([""])
