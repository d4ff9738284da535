"""Many conversations: every one answered once, in order, whatever happens in between."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import run
from pipeline.errors import OutputError
from pipeline.generation.config import GenerateConfig
from pipeline.generation.conversations import read_conversations
from pipeline.generation.generate import generate
from pipeline.generation.journal import Journal
from pipeline.prepare.files.reading import find_files
from pipeline.store.atomic import locked_folder
from tests.conftest import record

LENGTH = 8


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def generated(trained: Path, output: Path, data: Path | list[Path], **settings: Any) -> list[Any]:
    paths = [data] if isinstance(data, Path) else data
    config = GenerateConfig(
        model=str(trained),
        data_path=tuple(map(str, paths)),
        output_path=str(output),
        **{"max_new_tokens": LENGTH, **settings},
    )
    assert generate(config) == output
    return rows_of(output)


def stock(model: Any, folder: Path, messages: list[dict[str, str]]) -> str:
    """What stock transformers answers, from the folder's own template on."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=LENGTH, num_beams=1)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def test_every_form_is_answered_in_order_with_its_fields(
    trained: Path, plain_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        record("a", "Hi", "Hello", "Who are you?") | {"score": 1.5, "tags": [1, None, {"x": "é"}]},
        record("b", "One plus one?", "2"),
        {"messages": [{"role": "system", "content": "Be odd."}, {"role": "user", "content": "x"}]},
        {"prompt": "Say it", "completion": "it", "big": 12345678901234567890123},
        {"instruction": "Add", "input": "1, 2", "output": "3"},
        record("no question", "I am alone", roles=["gpt"]),
        record("unknown", "x", roles=["martian"]),
    ]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "readme.html").write_text("<html>", encoding="utf-8")
    (folder / "link.json").symlink_to("nowhere")
    table = pa.table({"question": ["From a table?"], "answer": ["yes"], "n": [7]})
    pq.write_table(table, folder / "b.parquet")
    rows = generated(trained, tmp_path / "out" / "G.jsonl", folder)
    inputs = [*records[:5], {"question": "From a table?", "answer": "yes", "n": 7}]
    for row, given in zip(rows, inputs, strict=True):
        assert {name: value for name, value in row.items() if name in given} == given
        assert row.keys() - given.keys() == {"generated", "finish_reason"}
    user, assistant = "user", "assistant"
    asked = [
        [(user, "Hi"), (assistant, "Hello"), (user, "Who are you?")],
        [(user, "One plus one?")],
        [("system", "Be odd."), (user, "x")],
        [(user, "Say it")],
        [(user, "Add\n\n1, 2")],
        [(user, "From a table?")],
    ]
    for row, turns in zip(rows, asked, strict=True):
        messages = [{"role": role, "content": text} for role, text in turns]
        assert row["generated"] == stock(plain_model, trained, messages)
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    err = capsys.readouterr().err
    assert "no answer for 2 records: no_question 1, unknown_role 1" in err
    skipped = [line for line in err.splitlines() if "skipped" in line]
    assert len(skipped) == 2, skipped  # a file, a link: each is said once
    assert re.search(r"6 of 6, [\d.]+ answers/s, [\d,]+ tokens/s, 0 s left", err)


def test_all_turns_are_answered_after_the_true_history(
    trained: Path, plain_model: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record("a", "Hi", "True answer", "More?", "Yes", "?")]))
    rows = generated(trained, tmp_path / "G.jsonl", path, all_turns=True)
    assert [row["turn"] for row in rows] == [1, 3, 5]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "True answer"}]
    messages += [{"role": "user", "content": "More?"}]
    assert rows[0]["generated"] == stock(plain_model, trained, messages[:1])
    assert rows[1]["generated"] == stock(plain_model, trained, messages)


def many(path: Path, count: int) -> Path:
    records = [record(f"r{i}", "word " * (1 + i * 7 % 15) + str(i)) for i in range(count)]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_killed_run_goes_on_nothing_twice_and_nothing_lost(trained: Path, tmp_path: Path) -> None:
    data = many(tmp_path / "a.json", 120)
    args = ["generate", str(trained), "--data-path", str(data), "--max-new-tokens", "24"]
    # Of eight tokens: rounding, other in each batch, moves the bounds of hundreds too often.
    args += ["--temperature", "1", "--top-k", "8", "--output-path"]
    output, journal = tmp_path / "k" / "G.jsonl", tmp_path / "k" / ".G.jsonl.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *args, str(output), "--max-batch-tokens", "700"],
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and _lines(journal) < 20:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert not output.exists()
    before = journal.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    journal.write_bytes(whole + b'[17, {"id": "r17", "conver')  # as a kill inside a write leaves it
    written: list[int] = []
    real = Journal.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Journal, "write", lambda self, i, row: (written.append(i), real(self, i, row))
        )
        assert run([*args, str(output)]) == 0
    there = [json.loads(line)[0] for line in whole.splitlines()[1:]]
    assert sorted(there + written) == list(range(120)), "each was answered once in the two runs"
    assert len(there) >= 19
    assert run([*args, str(tmp_path / "whole.jsonl")]) == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes(), "draws of its own each"
    assert [row["id"] for row in rows_of(output)] == [f"r{i}" for i in range(120)]
    assert sorted(path.name for path in output.parent.iterdir()) == ["G.jsonl", "G.jsonl.run.json"]


def test_what_is_there_is_kept_and_the_rest_is_answered(trained: Path, tmp_path: Path) -> None:
    """As a kill leaves it: answers in the order they ended, and half a line."""
    data = many(tmp_path / "a.json", 5)
    rows = generated(trained, tmp_path / "whole.jsonl", data)
    request = json.loads((tmp_path / "whole.jsonl.run.json").read_text())
    output, kept = tmp_path / "G.jsonl", {3: "kept 3", 0: "kept 0"}
    with Journal(output, request) as journal:
        for i, text in kept.items():
            journal.write(i, rows[i] | {"generated": text})
    with (tmp_path / ".G.jsonl.journal").open("ab") as file:
        file.write(b'[1, {"id": "r1", "conver')
    expected = [row | {"generated": kept.get(i, row["generated"])} for i, row in enumerate(rows)]
    assert generated(trained, output, data) == expected
    assert not (tmp_path / ".G.jsonl.journal").exists()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_the_same_command_again_does_nothing(trained: Path, tmp_path: Path) -> None:
    data = many(tmp_path / "a.json", 3)
    output = tmp_path / "G.jsonl"
    rows = generated(trained, output, data)
    before = output.stat().st_mtime_ns
    assert generated(trained, output, data) == rows
    assert output.stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="already exists"):
        generated(trained, output, data, temperature=1.0)
    many(data, 4)
    with pytest.raises(OutputError, match="already exists"):
        generated(trained, output, data)


def test_what_was_begun_for_other_settings_is_not_mixed(trained: Path, tmp_path: Path) -> None:
    data, output = many(tmp_path / "a.json", 3), tmp_path / "G.jsonl"
    rows = generated(trained, tmp_path / "other.jsonl", data)
    request = json.loads((tmp_path / "other.jsonl.run.json").read_text())
    with Journal(output, request | {"seed": 43}) as journal:
        journal.write(0, rows[0])
    with pytest.raises(OutputError, match="another seed: 43, now 42"):
        generated(trained, output, data)


def test_two_at_once_are_refused(trained: Path, tmp_path: Path) -> None:
    data, output = many(tmp_path / "a.json", 3), tmp_path / "G.jsonl"
    (tmp_path / ".G.jsonl.journal").touch()
    with (
        locked_folder(tmp_path / ".G.jsonl.journal"),
        pytest.raises(OutputError, match="another process"),
    ):
        generated(trained, output, data)


def test_bad_input_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = many(tmp_path / "a.json", 2)
    (tmp_path / "none.json").write_text(json.dumps([record("a", "x", roles=["gpt"])]))
    cases = {
        ("nowhere", str(data), "x.jsonl"): "no trained model",
        (str(trained), "nowhere", "x.jsonl"): "no such path",
        (str(trained), str(tmp_path / "none.json"), "x.jsonl"): "no conversation with a question",
        (str(trained), str(data), "s3://b/x.jsonl"): "a URL where",
        (str(trained), str(data), "a.json/x.jsonl"): "cannot write",
    }
    for (model, path, output), message in cases.items():
        target = output if "://" in output else str(tmp_path / output)
        assert run(["generate", model, "--data-path", path, "--output-path", target]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err.splitlines()[-1] and "Traceback" not in err
    args = ["generate", str(trained), "--data-path", str(data), "--num-beams", "3"]
    assert run([*args, "--temperature", "1", "--output-path", str(tmp_path / "y")]) == 1
    assert "--num-beams" in capsys.readouterr().err
    args[-2:] = ["--max-batch-tokens", "50", "--output-path", str(tmp_path / "y")]
    assert run(args) == 1
    assert "--max-batch-tokens" in capsys.readouterr().err.splitlines()[-1]


def test_records_keep_numbers_as_they_are(tmp_path: Path) -> None:
    text = (
        '{"conversations": [{"from": "human", "value": "x"}], "n": 1.5, "i": 10000000000000000001}'
    )
    (tmp_path / "a.jsonl").write_text(text)
    (found,) = read_conversations(find_files([str(tmp_path / "a.jsonl")]))
    assert (found.fields["n"], found.fields["i"]) == (1.5, 10000000000000000001)
    assert Counter(map(type, found.fields.values()))[str] == 0
