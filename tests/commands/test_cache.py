"""``duet cache``: what is kept is shown, what nobody needs is deleted, and nothing else."""

import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock

import pipeline
from pipeline.cli import run
from pipeline.config import PrepareConfig
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from tests.conftest import SAMPLE


@pytest.fixture
def output(tiny_t5: Path, tmp_path: Path) -> Path:
    for length in (128, 256):
        pipeline.prepare(
            PrepareConfig(
                data_path=(str(SAMPLE),),
                model_name_or_path=str(tiny_t5),
                output_dir=str(tmp_path / "processed"),
                model_max_length=length,
            )
        )
    return tmp_path / "processed"


def folders(output: Path) -> list[Path]:
    return sorted(path.parent for path in output.glob("*/manifest.json"))


def chunks(output: Path) -> list[Path]:
    return sorted(output.glob(".chunks/*/*/chunk.json"))


def cache(output: Path, *args: str) -> int:
    return run(["cache", *args, "--output-dir", str(output)])


def test_ls_shows_folders_parts_and_leftovers(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / ".tmp-killed-1").mkdir()
    (output / ".tmp-killed-1" / "x").write_bytes(b"12345")
    broken = folders(output)[1]
    (broken / "rejected.jsonl").unlink()
    assert cache(output, "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == [folders(output)[0].name, "93"]
    assert lines[1].endswith("sample.json")
    assert "a file of the prepared folder is missing" in lines[2]
    assert lines[3].split()[:3] == ["chunks", "kept", "2"]
    assert lines[4].split() == ["in", "no", "prepared", "folder", "0", "0", "B"]
    assert lines[5].split()[:7] == ["left", "by", "killed", "runs", "1", "5", "B"]


def test_prune_deletes_what_no_folder_holds(output: Path) -> None:
    gone, kept = folders(output)
    shutil.rmtree(gone)
    assert len(chunks(output)) == 2
    assert cache(output, "prune", "--dry-run") == 0
    assert len(chunks(output)) == 2
    assert len(list((output / ".index").glob("*.json"))) == 2
    assert cache(output, "prune") == 0
    assert len(chunks(output)) == 1
    assert len(list((output / ".index").glob("*.json"))) == 1
    assert folders(output) == [kept]


def test_prune_forgets_files_whose_chunks_are_gone_and_what_older_versions_kept(
    output: Path,
) -> None:
    (output / ".parts" / "3f").mkdir(parents=True)
    index, prepared = output / ".index", folders(output)[0]
    fresh, *unfinished = (
        index / ".x.json.1-2.tmp",
        index / ".y.json.1-2.tmp",
        index / "files" / ".z.json.1-2.tmp",
        prepared / ".config.yaml.1-2.tmp",
    )
    for path in (fresh, *unfinished):
        path.write_text("half")
    for path in unfinished:
        os.utime(path, (0, 0))
    entries = sorted((output / ".index" / "files").glob("*.json"))
    assert len(entries) == 2
    shutil.rmtree(chunks(output)[0].parent)
    assert cache(output, "prune", "--dry-run") == 0
    assert (output / ".parts").exists()
    assert cache(output, "prune") == 0
    assert [path.exists() for path in (fresh, *unfinished)] == [True, False, False, False]
    assert not (output / ".parts").exists()
    assert len(list((output / ".index" / "files").iterdir())) == 1


def test_prune_all_leaves_prepared_folders_whole(output: Path) -> None:
    assert cache(output, "prune", "--all-parts") == 0
    assert chunks(output) == []
    for folder in folders(output):
        assert open_split(folder, read_manifest(folder), "train").num_rows == 93


def test_prune_goes_by_the_last_use(output: Path) -> None:
    old, _ = chunks(output)
    os.utime(old, (time.time() - 3 * 86_400,) * 2)
    assert cache(output, "prune", "--all-parts", "--older-than", "2") == 0
    assert len(chunks(output)) == 1
    assert not old.exists()


def test_prune_spares_a_run_that_is_going_on(output: Path) -> None:
    for name in ("going-on", "killed"):
        (output / f".tmp-{name}-1").mkdir()
    with FileLock(output / ".locks" / "going-on.lock"):
        assert cache(output, "prune") == 0
    assert (output / ".tmp-going-on-1").exists()
    assert not (output / ".tmp-killed-1").exists()


def test_a_folder_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cache(tmp_path / "nowhere", "ls") == 1
    assert capsys.readouterr().err.startswith("error: no such folder; where: ")
