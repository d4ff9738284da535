"""The manifest: what is refused, and that nothing in it is lost."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PreparedFolderError
from pipeline.store.manifest import SCHEMA_VERSION, read_manifest, write_manifest
from pipeline.store.summary import summary

GOLDEN = Path(__file__).parent.parent / "golden" / "prepared"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "prepared"))


def test_it_comes_back_as_it_was_written(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "manifest.json").unlink()
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
    assert manifest.splits() == ["train", "eval"]
    assert manifest.rows("train") + manifest.rows("eval") == manifest.counts["pairs"]
    assert manifest.rows("nothing") == 0


def change(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (shutil.rmtree, "no such prepared folder"),
        (lambda f: (f / "manifest.json").unlink(), "not a complete one"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
        (change(schema_version=SCHEMA_VERSION + 1), "another version"),
        (change(shards=[{"path": "x"}]), "cannot be read"),
        (change(unknown=1), "cannot be read"),
        (lambda f: (f / "eval" / "shard-00000.arrow").unlink(), "got: no such file"),
        (lambda f: (f / "eval" / "shard-00000.arrow").write_bytes(b"x"), "got: 1 bytes, not"),
        (lambda f: (f / "rejected.jsonl").unlink(), "a file of the prepared folder"),
        (
            lambda f: (f / "eval" / "state.json").unlink(),
            "a file of the prepared folder",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    folder: Path, damage: Callable[[Path], object], text: str
) -> None:
    damage(folder)
    with pytest.raises(PreparedFolderError, match=text):
        read_manifest(folder)


def test_the_table_names_every_reason(folder: Path) -> None:
    manifest = read_manifest(folder)
    text = summary(manifest, folder)
    for reason, count in manifest.counts["reasons"].items():
        assert f"{reason} " in text
        assert str(count) in text
    odd = dataclasses.replace(manifest, counts=manifest.counts | {"reasons": {"new_reason": 7}})
    assert "new_reason" in summary(odd, folder)


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda text: text.replace(b"fingerprint", b"fingerpri\xffnt"), "can't decode byte 0xff"),
        (lambda text: text.replace(b'"schema_version"', b'"schema"'), "no 'schema_version'"),
        (lambda _: b"[]", "a list, not an object"),
    ],
)
def test_a_damaged_manifest_is_told_in_a_few_words(
    folder: Path, damage: Callable[[bytes], bytes], got: str
) -> None:
    path = folder / "manifest.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PreparedFolderError, match="cannot be read") as raised:
        read_manifest(folder)
    assert got in raised.value.got
    assert len(raised.value.got) < 100
    assert "Error" not in raised.value.got
