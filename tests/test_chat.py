"""Chatting uses the template, tokenizer and window of training."""

import io
import shutil
from pathlib import Path

import pytest

from pipeline.chat import source_ids
from pipeline.cli import run
from pipeline.conversation import Role, Turn
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from pipeline.tokenizer import copy_tokenizer, load_tokenizer

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def trained(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as fit leaves it: weights and the lossless tokenizer."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    shutil.copytree(tiny_t5, folder)
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    load_tokenizer(str(tiny_t5)).save(folder, model_max_length=128)
    return folder


def test_the_ids_are_those_of_training() -> None:
    """The golden rows again, from their turns: uncut, history cut, question cut, header cut."""
    import json

    folder = GOLDEN / "prepared"
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    records = json.loads((GOLDEN / "conversations.json").read_text(encoding="utf-8"))
    roles = {"human": Role.HUMAN, "gpt": Role.ASSISTANT, "system": Role.SYSTEM}
    seen = 0
    for split in manifest.splits():
        for row in open_split(folder, manifest, split).to_pylist():
            record = next(r for r in records if r["id"] == row["conversation_id"])
            turns = [Turn(roles[t["from"]], t["value"]) for t in record["conversations"]]
            if "system" in record:
                turns.insert(0, Turn(Role.SYSTEM, record["system"]))
            if row["turn"] > len(turns) - 1:
                continue  # an answer of a later part
            assert source_ids(tokenizer, turns[: row["turn"]], 240) == row["input_ids"]
            seen += 1
    assert seen == 10


def test_one_message_one_answer(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["chat", str(trained), "--message", "Hi", "--max-new-tokens", "5"]
    assert run(args) == 0
    first, err = capsys.readouterr()
    assert err == ""
    assert run(args) == 0
    assert capsys.readouterr().out == first, "greedy decoding is the same each time"
    assert run([*args, "--temperature", "1.5", "--seed", "7"]) == 0
    sampled = capsys.readouterr().out
    assert run([*args, "--temperature", "1.5", "--seed", "7"]) == 0
    assert capsys.readouterr().out == sampled != first


def test_the_answer_is_greedy_generation_of_plain_transformers(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    messages = [{"role": "system", "content": "Be odd."}, {"role": "user", "content": "a {b}\n c"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    output = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8)
    expected = tokenizer.decode(output[0], skip_special_tokens=True)
    args = ["chat", str(trained), "--system", "Be odd.", "--message", "a {b}\n c"]
    assert run([*args, "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_a_conversation_line_by_line(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n\n/new\nHi\nAnd you?\n"))
    assert run(["chat", str(trained), "--max-new-tokens", "4"]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 3
    assert answers[0] == answers[1], "/new starts over"


def test_a_folder_without_a_model_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_tokenizer(GOLDEN / "prepared" / "tokenizer", tmp_path)
    assert run(["chat", str(tmp_path), "--message", "x"]) == 1
    assert "no trained model" in capsys.readouterr().err
