"""Writes are whole or not there."""

import errno
from pathlib import Path

import pytest

from pipeline.errors import OutputError
from pipeline.store.atomic import (
    hold_folder,
    locked_folder,
    output_errors,
    publish_folder,
    remove_folder,
    write_file,
)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "x.json"
    write_file(path, "old")
    write_file(path, "nëw")
    assert path.read_text(encoding="utf-8") == "nëw"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_file(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_is_published_whole_also_over_another(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for text in ("one", "two"):
        temporary = tmp_path / "temporary"
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / text).write_text(text)
        publish_folder(temporary, final)
        assert [p.name for p in (final / "sub").iterdir()] == [text]
        assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_the_file_at_fault_is_named(tmp_path: Path) -> None:
    expected = r"where: .*/nowhere/x; got: No such file"
    with pytest.raises(OutputError, match=expected), output_errors(tmp_path):
        (tmp_path / "nowhere" / "x").write_text("")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_disk_without_locks_is_written_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no locks")

    fcntl = pytest.importorskip("fcntl", reason="not on this system")
    monkeypatch.setattr(fcntl, "flock", fail)
    folder = tmp_path / "run"
    folder.mkdir()
    assert hold_folder(folder)
    with locked_folder(folder):
        pass
    remove_folder(folder)
    assert not folder.exists()
