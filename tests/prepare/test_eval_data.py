"""``--eval-data-path``: the eval split from files of its own, read first."""

import json
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.errors import ConfigError, InputError
from pipeline.store.manifest import Manifest, read_manifest
from pipeline.store.shards import open_split
from tests.conftest import record


def prepare(tmp_path: Path, tiny_t5: Path, **options: Any) -> tuple[Path, Manifest]:
    config = PrepareConfig(
        data_path=(str(tmp_path / "train.json"),),
        eval_data_path=(str(tmp_path / "held.json"),),
        model_name_or_path=str(tiny_t5),
        output_dir=str(tmp_path / "out"),
        **options,
    )
    folder = Path(pipeline.prepare(config))
    return folder, read_manifest(folder)


def write(tmp_path: Path, held: list[Any], train: list[Any]) -> None:
    (tmp_path / "held.json").write_text(json.dumps(held))
    (tmp_path / "train.json").write_text(json.dumps(train))


def ids(folder: Path, manifest: Manifest, split: str) -> list[str]:
    found: list[str] = open_split(folder, manifest, split)["conversation_id"].to_pylist()
    return found


def test_what_repeats_the_split_eval_is_left_out_of_train_and_all_is_counted(
    tmp_path: Path, tiny_t5: Path
) -> None:
    held = [record("h1", "q", "a"), record("h2", "q", "b"), record("h3", "q", "a"), {"x": 1}]
    train = [record("t1", "q", "b"), record("t2", "r", "c"), record("t3", "q", "a"), 7]
    write(tmp_path, held, train)
    folder, manifest = prepare(tmp_path, tiny_t5)
    assert ids(folder, manifest, "eval") == ["h1", "h2"]
    assert ids(folder, manifest, "train") == ["t2"]
    counts = manifest.counts
    assert (counts["records"], counts["rejected"], counts["conversations"]) == (8, 2, 3)
    assert counts["reasons"]["duplicate"] == 3
    assert [source["name"] for source in manifest.sources] == ["held.json", "train.json"]


def test_parts_never_join_across_the_two(tmp_path: Path, tiny_t5: Path) -> None:
    write(tmp_path, [record("Abcdefg_0", "q", "a")], [record("Abcdefg_2", "r", "b")])
    folder, manifest = prepare(tmp_path, tiny_t5)
    assert ids(folder, manifest, "eval") == ["Abcdefg_0"]
    assert ids(folder, manifest, "train") == ["Abcdefg_2"]
    assert manifest.counts["joined"] == 0


def test_the_same_records_split_elsewhere_are_another_folder(tmp_path: Path, tiny_t5: Path) -> None:
    records = [record(f"r{i}", f"q{i}", "a") for i in range(4)]
    folders = set()
    for at in (1, 2):
        write(tmp_path, records[:at], records[at:])
        folder, manifest = prepare(tmp_path, tiny_t5)
        assert len(ids(folder, manifest, "eval")) == at
        folders.add(folder)
    assert len(folders) == 2


def test_with_a_fraction_too_it_is_refused(tmp_path: Path, tiny_t5: Path) -> None:
    write(tmp_path, [record("h", "q", "a")], [record("t", "q", "b")])
    with pytest.raises(ConfigError, match="in two ways"):
        prepare(tmp_path, tiny_t5, eval_fraction=0.5)


def test_where_all_repeats_the_split_eval_the_error_says_so(tmp_path: Path, tiny_t5: Path) -> None:
    write(tmp_path, [record("h", "q", "a")], [record("t", "q", "a")])
    with pytest.raises(InputError, match="all 1 pairs are of --eval-data-path"):
        prepare(tmp_path, tiny_t5)


@pytest.mark.parametrize("held", [[{"x": 1}], [record("a", "a question alone")]])
def test_a_split_eval_without_a_pair_is_said(
    tmp_path: Path, tiny_t5: Path, held: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, held, [record("b", "q", "a")])
    prepare(tmp_path, tiny_t5)
    said = "note: the eval split is empty: --eval-data-path gave no pair"
    assert said in capsys.readouterr().err.splitlines()
    write(tmp_path, [record("c", "r", "b")], [record("b", "q", "a")])
    prepare(tmp_path, tiny_t5)
    assert said not in capsys.readouterr().err.splitlines()
