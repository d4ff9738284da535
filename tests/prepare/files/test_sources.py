"""Paths to files, in order, with a line for each file that is skipped."""

import gzip
import json
import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.prepare.files.file_kind import recognize
from pipeline.prepare.files.sources import find_sources, note_held_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.json", "a.jsonl", "c[1].json"):
        (tmp_path / name).write_text('[{"id": 1}]')
    (tmp_path / "README.md").write_text("# words")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.json").write_text("[]")
    return tmp_path


def names(*paths: str) -> list[str]:
    sources = find_sources(paths)
    kinds = recognize(sources, [None] * len(sources))
    return [source.name for source, kind in zip(sources, kinds, strict=True) if kind is not None]


def test_a_folder_gives_its_files_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.json").write_text("[]")
    (folder / "dataset_info.json").write_text("{}")
    assert names(str(folder)) == ["a.jsonl", "b.json", "c[1].json", "d.json"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["note: skipped, text that is not JSON: README.md"]


@pytest.mark.parametrize("readme", ["[![CI](x.svg)](https://ci.example)\n", "[Chats](x.html)\n"])
def test_a_readme_that_begins_with_a_badge_or_a_link_is_no_json(folder: Path, readme: str) -> None:
    (folder / "README.md").write_text(readme)
    assert names(str(folder)) == ["a.jsonl", "b.json", "c[1].json", "d.json"]


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


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b" \n\t,\n", "an empty file"),
        (bytes(512), "an empty file"),
        (b"# words", "text that is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "an HTML or XML page"),
        (b"id,text\n1,hello\n", "a table of text"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"x" * 257 + b"ustar" + bytes(300), "a tar archive"),
        (b"\x7fELF\x00\x01", "a binary file"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "a table of text"),
        (gzip.compress(b"[1]", mtime=0)[:12], "a compressed file that is cut off"),
        (gzip.compress(b"", mtime=0), "an empty file"),
        ("[]".encode("utf-16-le"), "UTF-16 or UTF-32 without a byte-order mark"),
        ("{}".encode("utf-32-be"), "UTF-16 or UTF-32 without a byte-order mark"),
    ],
)
def test_a_named_file_that_is_no_data_is_an_error_that_says_what_it_is(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=what):
        names(str(tmp_path / "x.json"))


def test_files_that_look_held_out_are_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Where the folder itself stands says nothing, and a file that was named is meant.
    folder = tmp_path / "test"
    for name in ("data/test-00000-of-00001.parquet", "dev/x.json", "latest.json", "a/train.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("[]")
    (tmp_path / "eval.json").write_text("[]")
    note_held_out(find_sources([str(folder), str(tmp_path / "eval.json")]))
    assert capsys.readouterr().err.splitlines() == [
        "note: used for training like the other files: data/test-00000-of-00001.parquet, "
        "dev/x.json; --eval-data-path keeps them apart"
    ]
    note_held_out(find_sources([str(tmp_path / "*.json")]))
    assert "eval.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("nothing.json", "no such path"),
        ("*.nothing", "a glob that matches nothing"),
        ("README*", "no file of records"),
        ("empty", "no file of records"),
        ("pipes", "only hidden files, pipes and broken links"),
        ("x" * 300, "a path cannot be read"),
    ],
)
def test_what_is_not_there_is_an_error(folder: Path, path: str, what: str) -> None:
    (folder / "empty").mkdir()
    (folder / "pipes").mkdir()
    os.mkfifo(folder / "pipes" / "x.json")
    (folder / "pipes" / "y.json").symlink_to("nowhere")
    with pytest.raises(InputError, match=what):
        names(str(folder / path))


def test_a_file_name_that_is_no_utf8_can_be_written_about(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")
    Path(path).write_text("[]")
    assert json.dumps(names(path), ensure_ascii=False).encode("utf-8")


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(InputError, match="an empty name"):
        find_sources([""])


def test_links_in_a_folder_are_followed_once_and_dead_ones_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("given", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text("[]")
    (tmp_path / "given" / "more").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to("../given")
    (tmp_path / "given" / "gone.json").symlink_to("nowhere")
    assert names(str(tmp_path / "given")) == ["given.json", "elsewhere.json"]
    said = capsys.readouterr().err.splitlines()
    assert said == ["note: skipped, a broken link: gone.json"]


def test_a_prepared_folder_is_no_folder_of_records(tmp_path: Path) -> None:
    for name in ("dataset_dict.json", "manifest.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="a prepared folder, not records") as raised:
        find_sources([str(tmp_path)])
    assert "duet fit" in raised.value.do


def test_files_of_the_two_splits_are_told_apart_by_name(tmp_path: Path) -> None:
    for name in ("held", "rest"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").write_text("[]")
    found = find_sources([str(tmp_path / "rest")], [str(tmp_path / "held" / "x.json")])
    assert [(s.name, s.split, s.is_named) for s in found] == [
        ("held/x.json", "eval", True),
        ("rest/x.json", "train", False),
    ]
