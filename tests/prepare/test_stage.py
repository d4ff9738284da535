"""The first stage as a whole: what is published, what is found again, what is never published."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.conversation import split_part_id
from pipeline.errors import InputError, OutputError
from pipeline.prepare.encode import settings
from pipeline.prepare.engines import local as workers
from pipeline.store.chunk_cache import iterate_chunks
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from tests.conftest import SAMPLE, record
from tests.prepare.helpers import code_for_small, cut_at

WriteJson = Callable[[str, Any], Path]


@pytest.fixture
def prepare(tiny_t5: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that prepares some paths below the test's folder."""

    def run(*paths: Path | str, **options: Any) -> Path:
        config = PrepareConfig(
            data_path=tuple(str(path) for path in paths),
            model_name_or_path=str(tiny_t5),
            output_dir=options.pop("output_dir", str(tmp_path / "processed")),
            **options,
        )
        folder = pipeline.prepare(config)
        assert isinstance(folder, Path)
        return folder

    return run


def counts(folder: Path) -> dict[str, Any]:
    return read_manifest(folder).counts


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.arrow"))
    }


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize(
    ("options", "conversations", "pairs", "duplicate", "without_question"),
    [
        ({}, 48, 93, 1, 1),
        ({"dedup": False}, 49, 95, 0, 1),
        ({"join_parts": False}, 50, 93, 1, 2),
        ({"dedup": False, "join_parts": False}, 51, 95, 0, 2),
    ],
)
def test_the_sample_gives_these_counts(
    prepare: Callable[..., Path],
    options: dict[str, Any],
    conversations: int,
    pairs: int,
    duplicate: int,
    without_question: int,
) -> None:
    found = counts(prepare(SAMPLE, **options))
    assert (found["records"], found["rejected"]) == (53, 2)
    assert (found["conversations"], found["pairs"]) == (conversations, pairs)
    assert 2 + found["joined"] + duplicate + conversations == 53
    reasons = {"unknown_role": 1, "wrong_shape": 1, "empty_answer": 1}
    reasons |= {"answer_without_question": without_question}
    reasons |= {"duplicate": duplicate} if duplicate else {}
    # The part that cannot be joined, or is not, ends with a question.
    reasons |= {"question_without_answer": 1} if not options.get("join_parts", True) else {}
    cuts = ("history_cut", "question_cut", "answer_cut", "header_cut")
    assert {k: v for k, v in found["reasons"].items() if k not in cuts} == reasons


def test_a_repeat_has_the_same_roles_and_texts_under_any_id(
    prepare: Callable[..., Path], write_json: WriteJson
) -> None:
    given = [
        record("w", "q", "a"),
        record("x", "a", "b"),
        record("y", "a", "b"),  # the repeat
        record("z", "a", "b", roles=("gpt", "human")),
        record("v", "ab", ""),
        record("u", "a"),
        record("t", "a", "c"),
    ]
    folder = prepare(write_json("x.json", given))
    found = counts(folder)
    assert (found["records"], found["conversations"], found["pairs"]) == (7, 6, 3)
    reasons = {"duplicate": 1, "empty_answer": 1, "answer_without_question": 1}
    reasons |= {"no_pair": 3, "question_without_answer": 2}
    assert found["reasons"] == reasons
    table = open_split(folder, read_manifest(folder), "train")
    assert table["conversation_id"].to_pylist() == ["w", "x", "t"]


def test_datasets_opens_it_memory_mapped_and_without_our_code(
    prepare: Callable[..., Path],
) -> None:
    import datasets

    folder = prepare(SAMPLE, eval_fraction=0.3, model_max_length=256)
    loaded = datasets.load_from_disk(str(folder))
    assert isinstance(loaded, datasets.DatasetDict)
    assert list(loaded) == ["train", "eval"]
    manifest = read_manifest(folder)
    for split in loaded:
        data = loaded[split]
        assert data.column_names == ["input_ids", "labels", "conversation_id", "turn"]
        assert str(data.features["input_ids"].feature.dtype) == "uint16"
        assert len(data) == manifest.rows(str(split)) > 0
        assert data.cache_files, "no file: it was read into memory"
        assert (
            data[:]["input_ids"]
            == open_split(folder, manifest, str(split))["input_ids"].to_pylist()
        )
    assert max(map(len, loaded["train"]["input_ids"])) <= 256
    # Every row is some conversation's, and none is in both splits.
    bases = [{split_part_id(i)[0] for i in loaded[s]["conversation_id"]} for s in loaded]
    assert not bases[0] & bases[1]


def test_the_manifest_says_what_is_there_and_no_absolute_path(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    folder = prepare(SAMPLE)
    manifest = read_manifest(folder)
    assert folder.name == manifest.fingerprint
    (source,) = manifest.sources
    assert source["name"] == "sample.json"
    assert source["bytes"] == SAMPLE.stat().st_size
    for shard in manifest.shards:
        assert hashlib.sha256((folder / shard.path).read_bytes()).hexdigest() == shard.sha256
    table = open_split(folder, manifest, "train")
    for column in ("input_ids", "labels"):
        lengths = [len(ids) for ids in table[column].to_pylist()]
        assert manifest.tokens[column] == sum(lengths)
        assert manifest.tokens["lengths"][column]["max"] == max(lengths)
        assert manifest.tokens["lengths"][column]["p50"] == sorted(lengths)[(len(lengths) - 1) // 2]
    unknown = sum(ids.count(2) for c in ("input_ids", "labels") for ids in table[c].to_pylist())
    assert manifest.tokens["unknown"] == unknown > 0
    for path in (folder / "manifest.json", folder / "rejected.jsonl"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_split(moved, read_manifest(moved), "train").equals(table)


def test_what_was_rejected_is_kept_with_its_place_and_reason(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    odd = '{"id": 1e99, "conversations": [{"from": "alien",\n "value": "\\ud800"}]}'
    path.write_text(f"[{json.dumps(record('a', 'q', 'a'))}, {odd}, 7, {{")
    lines = (prepare(path) / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    first, second, third = map(json.loads, lines)
    assert (first["file"], first["position"], first["reason"]) == ("x.json", 1, "unknown_role")
    assert first["record"] == json.loads(odd)
    assert (second["reason"], second["record"]) == ("wrong_shape", 7)
    assert (third["position"], third["reason"]) == (3, "cut_off")
    assert "record" not in third


def test_the_same_content_is_found_again_from_another_path_time_and_form(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    records = [record(f"c_{i}", f"q{i}", f"a{i}") for i in range(5)] + [{"broken": True}]
    (tmp_path / "x.json").write_text(json.dumps(records, indent=1))
    first = prepare(tmp_path / "x.json")
    (tmp_path / "sub").mkdir()
    lines = "\n".join(map(json.dumps, records)).encode()
    (tmp_path / "sub" / "other name.jsonl.gz").write_bytes(gzip.compress(lines))
    stamp = (first / "manifest.json").stat().st_mtime_ns
    assert prepare(tmp_path / "sub" / "other name.jsonl.gz") == first
    shutil.copy(tmp_path / "x.json", tmp_path / "z.json")
    os.utime(tmp_path / "z.json", (1, 1))
    assert prepare(tmp_path / "z.json") == first
    parts = [tmp_path / "p1.json", tmp_path / "p2.json"]
    for path, part in zip(parts, (records[:2], records[2:]), strict=True):
        path.write_text(json.dumps(part))
    assert prepare(*parts) == first
    assert (first / "manifest.json").stat().st_mtime_ns == stamp


def test_records_without_an_id_are_named_after_their_content(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    folders = []
    for name, before in (("x.json", 7), ("y.json", 7), ("y.json", 8)):
        (tmp_path / name).write_text(json.dumps([before, record(None, "q", "a")]))
        folder = prepare(tmp_path / name)
        table = open_split(folder, read_manifest(folder), "train")
        # printf '[["human","q"],["assistant","a"]]' | sha256sum
        assert table["conversation_id"].to_pylist() == ["48b7099a9780c364"]
        folders.append(folder)
    assert folders[0] == folders[1] != folders[2]


def test_other_rejections_are_another_folder(prepare: Callable[..., Path], tmp_path: Path) -> None:
    good = json.dumps(record("a", "q", "a"))
    folders = set()
    for i, broken in enumerate(("NaN", "x")):
        (tmp_path / f"{i}.json").write_text(f"[{good}, {broken}]")
        folder = prepare(tmp_path / f"{i}.json")
        assert json.loads((folder / "rejected.jsonl").read_text())["file"] == f"{i}.json"
        folders.add(folder)
    assert len(folders) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"model_max_length": 100},
        {"max_target_length": 10},
        {"eval_fraction": 0.5},
        {"join_parts": False},
        {"dedup": False},
        {"role": ("narrator=assistant",)},
        {"train_turns": "last"},
        {"clean_html": True},
    ],
)
def test_other_options_are_another_folder(
    prepare: Callable[..., Path], options: dict[str, Any]
) -> None:
    assert prepare(SAMPLE) != prepare(SAMPLE, **options)


def test_one_worker_and_two_give_the_same_bytes(
    prepare: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = prepare(SAMPLE, eval_fraction=0.2, output_dir=str(tmp_path / "whole"))
    assert len(list(iterate_chunks(tmp_path / "whole" / ".chunks"))) == 1
    cut_at(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", None)  # all in this process
        one = prepare(SAMPLE, num_workers=1, eval_fraction=0.2, output_dir=str(tmp_path / "one"))
    assert len(list(iterate_chunks(tmp_path / "one" / ".chunks"))) > 4
    pools = list[int]()

    class Pool(ProcessPoolExecutor):
        def __init__(self, size: int, *args: Any) -> None:
            pools.append(size)
            super().__init__(size, *args)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", Pool)
        two = prepare(SAMPLE, num_workers=2, eval_fraction=0.2, output_dir=str(tmp_path / "two"))
    assert pools == [2]
    assert one.name == two.name == whole.name
    assert shard_bytes(one) == shard_bytes(two)
    for split in ("train", "eval"):
        tables = [open_split(f, read_manifest(f), split) for f in (one, whole)]
        assert tables[0].equals(tables[1])


def test_parts_join_across_files_and_kinds(
    prepare: Callable[..., Path], tmp_path: Path, write_json: WriteJson
) -> None:
    first = write_json("1.json", [record("A234567_0", "q0", "a1"), {"broken": 1}])
    rows = [record("A234567_2", "q2", "a3")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "2.parquet")
    found = counts(prepare(first, tmp_path / "2.parquet"))
    assert (found["conversations"], found["pairs"]) == (1, 2)


def test_a_file_name_that_is_no_utf8_is_read(prepare: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    name = os.fsdecode(b"a\xff.json")
    (tmp_path / "records" / name).write_text(json.dumps([record("a", "q", "a")]))
    folder = prepare(tmp_path / "records")
    assert [source["name"] for source in read_manifest(folder).sources] == ["a\ufffd.json"]


@pytest.mark.parametrize("value", [[], [record("a", "q")], [{"x": 1}], [record("a", "q", " ")]])
def test_no_pair_left_is_an_error_and_nothing_is_published(
    prepare: Callable[..., Path], tmp_path: Path, write_json: WriteJson, value: Any
) -> None:
    with pytest.raises(InputError, match="no pair is left"):
        prepare(write_json("x.json", value))
    assert visible(tmp_path / "processed") == []


def test_the_last_turns_alone_and_markdown_of_html(
    prepare: Callable[..., Path], write_json: WriteJson
) -> None:
    from pipeline.tokenizer import load_tokenizer

    given = [
        record("a", "q", "<p>one</p>", "q", "<p>two</p>"),
        record("b", "q", "three", "q", "\u200b"),
    ]
    folder = prepare(write_json("x.json", given), train_turns="last", clean_html=True)
    table = open_split(folder, read_manifest(folder), "train").to_pydict()
    assert list(zip(table["conversation_id"], table["turn"], strict=True)) == [("a", 3), ("b", 1)]
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    assert [tokenizer.decode(ids) for ids in table["labels"]] == ["two", "three"]
    assert "### Assistant: one\n### Human: q\n" in tokenizer.decode(table["input_ids"][0])
    assert counts(folder)["reasons"] == {"empty_answer": 1}


def test_two_hundred_hand_made_ids_fall_into_both_splits(
    prepare: Callable[..., Path], write_json: WriteJson
) -> None:
    given = [record(f"sample_{i}", f"q{i}", "a") for i in range(200)]
    folder = prepare(write_json("x.json", given), eval_fraction=0.3)
    assert 40 <= read_manifest(folder).rows("eval") <= 80


def test_parts_of_one_base_are_in_one_split(
    prepare: Callable[..., Path], write_json: WriteJson
) -> None:
    given = [record(f"A{i:06}_{n}", f"q{i}", f"a{n}") for i in range(40) for n in (0, 5)]
    folder = prepare(write_json("x.json", given), eval_fraction=0.3)
    manifest = read_manifest(folder)
    ids = [
        open_split(folder, manifest, s)["conversation_id"].to_pylist() for s in ("train", "eval")
    ]
    train, held_out = ({split_part_id(i)[0] for i in some} for some in ids)
    assert manifest.counts["joined"] == 0
    assert held_out
    assert not train & held_out


def test_a_damaged_folder_is_made_again(
    prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(SAMPLE)
    before = shard_bytes(folder)
    shard = folder / "train" / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert prepare(SAMPLE) == folder
    assert shard_bytes(folder) == before
    assert "preparing again" in capsys.readouterr().err
    (folder / "manifest.json").unlink()
    assert prepare(SAMPLE) == folder
    assert (folder / "manifest.json").is_file()


@pytest.mark.parametrize(
    "name", ["tokenizer/tokenizer.json", "rejected.jsonl", "train/state.json", "dataset_dict.json"]
)
def test_a_folder_without_one_of_its_files_is_made_again(
    prepare: Callable[..., Path], name: str
) -> None:
    folder = prepare(SAMPLE)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    assert prepare(SAMPLE) == folder
    assert (folder / name).read_bytes() == content


def test_all_pairs_in_the_split_eval_is_an_error(
    prepare: Callable[..., Path], write_json: WriteJson
) -> None:
    with pytest.raises(InputError, match="all 1 pairs fell into the eval split"):
        prepare(write_json("x.json", [record("a", "q", "a")]), eval_fraction=0.999999)


def test_a_re_saved_tokenizer_gives_the_same_rows_and_a_spiece_model(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = prepare(SAMPLE)
    AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "spiece.model").exists()
    config = PrepareConfig(
        data_path=(str(SAMPLE),),
        model_name_or_path=str(tmp_path / "saved"),
        output_dir=str(tmp_path / "again"),
    )
    again = pipeline.prepare(config)
    assert again.name == folder.name
    name = "tokenizer/spiece.model"
    assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_an_output_folder_that_cannot_be_written_is_one_line(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        prepare(SAMPLE, output_dir=str(tmp_path / "file"))


def test_a_full_disk_publishes_nothing(
    prepare: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.store.shards import _HashingFile

    def full(self: object, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_HashingFile, "write", full)
    with pytest.raises(OutputError, match="No space left on device"):
        prepare(SAMPLE)
    assert visible(tmp_path / "processed") == []
    assert list(iterate_chunks(tmp_path / "processed" / ".chunks")) == []


def test_what_a_killed_run_left_is_cleaned_up(prepare: Callable[..., Path], tmp_path: Path) -> None:
    folder = prepare(SAMPLE)
    (index,) = filter(Path.is_file, (tmp_path / "processed" / ".index").iterdir())
    assert json.loads(index.read_text())["fingerprint"] == folder.name
    shutil.rmtree(folder)
    left = tmp_path / "processed" / f".tmp-{index.stem}-1" / "prepared" / "train"
    left.mkdir(parents=True)
    (left / "shard-00000.arrow").write_bytes(b"half")
    assert prepare(SAMPLE) == folder
    assert not left.exists()
    assert open_split(folder, read_manifest(folder), "train").num_rows == 93


def test_finding_it_again_imports_only_what_it_uses(
    prepare: Callable[..., Path], tiny_t5: Path, tmp_path: Path
) -> None:
    folder = prepare(SAMPLE)
    code = f"""
import sys
from pipeline.cli import run
code = run(["prepare", "--data-path", {str(SAMPLE)!r}, "--model-name-or-path", {str(tiny_t5)!r},
            "--output-dir", {str(tmp_path / "processed")!r}])
heavy = "torch", "transformers", "datasets", "pandas", "numpy", "pyarrow", "typer", "pydantic"
print(code, sorted({{*heavy}} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [str(folder), "0 []"]


def test_a_script_without_a_main_guard_can_use_workers(tiny_t5: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
import pipeline
from pipeline.prepare.engines import local as workers
{code_for_small()}
print("started")
pipeline.prepare(pipeline.PrepareConfig(
    data_path={str(SAMPLE)!r}, model_name_or_path={str(tiny_t5)!r}, num_workers=2,
    output_dir={str(tmp_path / "processed")!r}))
print(*{{"numpy", "tokenizers"}} & {{*sys.modules}})
""")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert result.stdout == "started\n\n", "once, and nothing is encoded in the parent"


def test_workers_end_when_the_run_is_killed(tiny_t5: Path, tmp_path: Path) -> None:
    code = f"""
import multiprocessing, os, signal
import pipeline
from pipeline.prepare.engines import local as workers
{code_for_small()}
add = workers.ProcessPoolExecutor.submit
def submit_and_die(pool, function, *args):
    future = add(pool, function, *args)
    if function is not workers._run:
        return future
    future.result()
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
workers.ProcessPoolExecutor.submit = submit_and_die
pipeline.prepare(pipeline.PrepareConfig(
    data_path={str(SAMPLE)!r}, model_name_or_path={str(tiny_t5)!r}, num_workers=2,
    output_dir={str(tmp_path / "processed")!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert result.returncode == -9
    children = [int(line) for line in result.stdout.split()]
    assert children
    deadline = time.monotonic() + 20
    while any(_runs(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(child) for child in children)


def test_ctrl_c_is_one_line_while_workers_are_started(tiny_t5: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pipeline.cli import run
from pipeline.prepare.engines import local as workers
{code_for_small()}
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
add = workers.ProcessPoolExecutor.submit
def submit_and_interrupt(pool, function, *args):
    future = add(pool, function, *args)
    os.killpg(0, signal.SIGINT)
    return future
workers.ProcessPoolExecutor.submit = submit_and_interrupt
sys.exit(run(["prepare", "--data-path", {str(SAMPLE)!r}, "--model-name-or-path", {str(tiny_t5)!r},
    "--output-dir", {str(tmp_path / "processed")!r}, "--num-workers", "2"]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True
    )
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
    assert not list((tmp_path / "processed").glob(".tmp*"))


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def while_reading(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something after the moment at which files are looked at, and before they are read."""
    load = settings.load_tokenizer

    def act_and_load(*args: Any) -> Any:
        act()
        return load(*args)

    patch.setattr(settings, "load_tokenizer", act_and_load)


def test_a_file_that_changes_while_it_is_read_is_an_error_and_nothing_is_published(
    prepare: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, first = tmp_path / "x.json", [record("a", "q", "a")]
    path.write_text(json.dumps(first))
    with monkeypatch.context() as patch:
        while_reading(patch, lambda: path.write_text(json.dumps([*first, record("b", "q", "b")])))
        with pytest.raises(InputError, match="changed while it was read"):
            prepare(path)
    assert visible(tmp_path / "processed") == []
    assert counts(prepare(path))["records"] == 2


def test_a_pipe_is_refused_in_one_line(prepare: Callable[..., Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        prepare(tmp_path / "pipe")


def test_a_file_that_gets_another_name_while_it_is_read_did_not_change(
    prepare: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([record("a", "q", "a")]))
    while_reading(monkeypatch, lambda: (tmp_path / "y.json").hardlink_to(path))
    assert counts(prepare(path))["records"] == 1
