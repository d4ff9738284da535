"""``duet verify``: whatever changes in a folder is noticed, and named."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.commands.run_file import leave_settings
from pipeline.commands.verify import verify
from pipeline.config import PrepareConfig, VerifyConfig
from pipeline.errors import DuetError, InputError, PreparedFolderError
from pipeline.store.fingerprint import sha256_of_file
from pipeline.store.seals import sealed_json
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "prepared"
REGIONS = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "prepared"))


def check(folder: Path) -> list[str]:
    return list(verify(VerifyConfig(folder=str(folder))))


def test_a_whole_folder_is_a_line(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert check(folder) == [
        f"{folder}: {len(files)} files, {size:,} bytes, all as they were written"
    ]


def test_the_settings_that_prepare_leaves_are_no_change(folder: Path) -> None:
    leave_settings(folder, "prepare", PrepareConfig(data_path=("x",), model_name_or_path="m"))
    assert (folder / "config.yaml").is_file()
    assert check(folder)
    (folder / "notes.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(PreparedFolderError, match=r"notes\.yaml"):
        check(folder)


def flip_each(folder: Path, names: Iterable[str], regions: int = REGIONS) -> None:
    """Flip a bit in each region of each file, one at a time: each is noticed."""
    for name in names:
        path = folder / name
        content = path.read_bytes()
        places = {len(content) * i // regions for i in range(regions)} if content else set()
        for at in sorted({*places, *({len(content) - 1} if content else ())}):
            changed = bytearray(content)
            changed[at] ^= 1
            path.write_bytes(changed)
            with pytest.raises(DuetError):
                check(folder)
        path.write_bytes(content)
    assert check(folder)


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_flipped_byte_anywhere_is_noticed(folder: Path) -> None:
    flip_each(folder, files_of(folder), regions=3)


def test_a_file_that_is_gone_or_new_is_named(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    with pytest.raises(PreparedFolderError, match=r"notes\.txt.*was not there"):
        check(folder)
    (folder / "notes.txt").unlink()
    (folder / "tokenizer" / "spiece.model").unlink()
    with pytest.raises(PreparedFolderError, match=r"spiece\.model.*no such file"):
        check(folder)


def test_the_checkpoints_of_a_run_are_checked(tmp_path: Path) -> None:
    for step in (9, 10):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "weights").write_bytes(b"w" * 100)
        seal = {"bytes": 100, "sha256": sha256_of_file(checkpoint / "weights")}
        text = sealed_json({"files": {"weights": seal}})
        (checkpoint / "checkpoint.json").write_text(text)
    assert [line.partition(":")[0] for line in check(tmp_path)] == [
        str(tmp_path / "checkpoint-9"),
        str(tmp_path / "checkpoint-10"),
    ]
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"w" * 99 + b"v")
    with pytest.raises(InputError, match="checkpoint-10/weights"):
        check(tmp_path)
    assert len(check(tmp_path / "checkpoint-9")) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"files": {"gone": {}}}', '{"files": []}'])
def test_a_damaged_checkpoint_json_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(DuetError, match="was changed after it was written"):
        check(tmp_path)


def test_a_folder_without_a_manifest_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(InputError, match="nothing to check against"):
            check(path)
