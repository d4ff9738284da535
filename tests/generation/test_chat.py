"""Chatting uses the template, tokenizer and window of training."""

import fcntl
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from pipeline.cli import run
from pipeline.console.terminal import visible
from pipeline.conversation import Conversation, Role, Turn
from pipeline.generation.source import SourceEncoder
from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from pipeline.tokenizer import copy_tokenizer, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_ids_are_those_of_training() -> None:
    """The golden rows again, from their turns: uncut, history cut, question cut, header cut."""
    folder = GOLDEN / "prepared"
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    records = json.loads((GOLDEN / "conversations.json").read_text(encoding="utf-8"))
    encoder = SourceEncoder(tokenizer, 240)
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
            asked = Conversation("x", turns[: row["turn"]])
            assert encoder.ids(asked) == row["input_ids"]
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
    assert run(["chat", str(tmp_path), "--message", " "]) == 1
    assert "give a message, not an empty one" in capsys.readouterr().err


def test_commands(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "chat.json"
    lines = ["/undo", "Hi", "And you?", "/undo", f"/save {path}", "/new", f"/load {path}"]
    lines += ["And you?", "/retry", "/system Be odd.", "/new", "Hi", "/load nowhere", "/what"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert run(["chat", str(trained), "--max-new-tokens", "12"]) == 0
    out, err = capsys.readouterr()
    hi, you, again, retried, odd = out.splitlines()
    assert you == again == retried, "the same question after the same turns, greedily"
    assert odd != hi
    said = err.splitlines()[1:]
    assert [line for line in said if "window" not in line] == [
        "there is no question yet",
        "the last question is gone",
        f"2 turns in {path}",
        "a new conversation",
        f"2 turns from {path}",
        "a new system text",
        "a new conversation",
        "error: no such file; where: nowhere; got: nothing there; do: give a file that /save "
        "wrote, or a ShareGPT export",
        "no such command: /what; see /help. To say it to the model, put a blank before it.",
    ]
    turns = json.loads(path.read_text(encoding="utf-8"))[0]["conversations"]
    assert turns == [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": hi}]


def test_a_byte_that_is_no_text_is_what_it_is_in_training(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for odd in ("\udcff", "\ufffd"):  # as Python reads the byte 0xFF, and U+FFFD
        monkeypatch.setattr("sys.stdin", io.StringIO(f"/system x {odd}\nHi {odd} there\r\n"))
        assert run(["chat", str(trained), "--max-new-tokens", "9"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


def test_it_says_how_many_turns_the_window_drops(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "What is the capital of Australia, please tell me?"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n" * 7))
    assert run(["chat", str(trained), "--max-new-tokens", "4"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "window" in line]
    encoder = SourceEncoder(load_tokenizer(str(trained)), 200)
    tokenizer = load_tokenizer(str(trained))
    assert told, "seven questions are more than 200 tokens"
    assert all("200 tokens" in line for line in told)
    # The same from the other end: how many of the questions are in the row.
    turns = [Turn(Role.HUMAN, question), Turn(Role.ASSISTANT, "a")] * 3 + [
        Turn(Role.HUMAN, question)
    ]
    asked = Conversation("x", turns)
    row = tokenizer.decode(encoder.ids(asked))
    held = row.count("### Human:") + row.count("### Assistant:") - 1
    assert encoder.dropped_turns(asked) == len(turns) - held > 0


def test_no_character_of_an_answer_is_obeyed() -> None:
    hostile = "".join(map(chr, range(0x20))) + "\x7f\x85\x9b31m\u202e\u2066\u2028"
    shown = visible(hostile)
    assert shown.count("\n") == shown.count("\t") == 1
    assert all(c.isprintable() for c in shown if c not in "\n\t")
    assert visible("plain äß 漢 \u200d😀") == "plain äß 漢 \u200d😀"


@pytest.mark.slow
def test_ctrl_c_ends_the_answer_and_not_the_chat(trained: Path, tmp_path: Path) -> None:
    """On a terminal of its own: an answer without end, ctrl-c, /save, ctrl-d."""
    chat = Terminal(["chat", str(trained), "--max-new-tokens", "1000000"], tmp_path)
    try:
        chat.wait_for("> ")
        for question in ("tell me", "tell me all", "Who are you", "Tell me more"):
            chat.type(f"{question}\n")
            chat.wait_for(question)
            chat.idle(1.0)
            if not chat.text.endswith("> "):
                break
        chat.type("\x03")
        chat.wait_for("(stopped)")
        chat.wait_for("> ")
        chat.type("\x03")
        chat.wait_for("ctrl-d ends the chat")
        chat.type("/undo\n")
        chat.wait_for("the last question is gone")
        chat.wait_for("> ")
        chat.type("\x04")
        assert chat.process.wait(60) == 0
        history = tmp_path / "duet" / "chat_history"
        assert history.read_text(encoding="utf-8").splitlines()[-1] == "/undo"
        assert history.stat().st_mode & 0o777 == 0o600
    finally:
        chat.close()


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, args: list[str], state: Path) -> None:
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *args],
            env={**os.environ, "XDG_STATE_HOME": str(state), "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._ours = ours
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until a text was shown; forget what was before."""
        end = time.monotonic() + 60
        while text not in self.text:
            assert time.monotonic() < end, f"no {text!r} in {self.text[-500:]!r}"
            self._read()
        self.text = self.text.partition(text)[2]

    def idle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> None:
        if select.select([self._ours], [], [], 0.2)[0]:
            self.text += os.read(self._ours, 1 << 16).decode(errors="replace")
