"""Files that did not change are not opened again, and what comes out is what a cold run gives."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.prepare.engines.base import Task
from pipeline.prepare.engines.local import LocalEngine
from pipeline.prepare.options import EncodingInfo
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
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the input files that are opened: those that lie in the test's own folder."""
    names = list[str]()
    open_path = Path.open

    def note(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.parent == tmp_path:
            names.append(path.name)
        return open_path(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", note)
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


def test_a_file_without_records_is_named_in_each_run(
    tiny_t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut_at(monkeypatch)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "README.md").write_text("# Chats")
    write(folder / "a.jsonl", generated(100, 1))
    time.sleep(0.1)  # else it might have changed within the clock's last tick
    prepared(tiny_t5, tmp_path / "out", folder)
    assert "skipped, text that is not JSON: README.md" in capsys.readouterr().err
    new = write(tmp_path / "new.jsonl", generated(20, 2))
    prepared(tiny_t5, tmp_path / "out", folder, new)
    assert "skipped, no records in it: README.md" in capsys.readouterr().err


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


def test_nobody_waits_for_the_tokenizer_to_look_through_a_file_that_is_new(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(monkeypatch)
    events = list[str]()

    class Engine(LocalEngine):
        def info(self) -> EncodingInfo:
            events.append("info")
            return super().info()

        def submit(self, task: Task, *args: Any) -> Callable[[], Any]:
            events.append(task)
            return super().submit(task, *args)

    monkeypatch.setattr(
        "pipeline.prepare.preparation.make_engine", lambda _, cache: Engine(cache, num_workers=1)
    )
    old = write(tmp_path / "old.jsonl", generated(100, 1))
    time.sleep(0.1)
    prepared(tiny_t5, tmp_path / "out", old)
    assert events.index("anchors") < events.index("info") < events.index("encode")
    events.clear()  # what was read before may have been read with other settings
    prepared(tiny_t5, tmp_path / "out", old, write(tmp_path / "new.jsonl", generated(20, 2)))
    assert events[0] == "info"
