"""What is shown while one waits: nothing at first, then one line, or lines in a file."""

import sys
import threading
import time

import pytest

from pipeline.console.progress import Bar, Wait, advance

SOON = 0.02


def test_what_is_over_at_once_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("hashing", 9, "bytes"):
        advance(9)
    assert capsys.readouterr().err == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_in_a_file_there_are_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("hashing", 100, "bytes", after=SOON, between=2 * SOON):
        advance(50)
        time.sleep(0.6)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 8  # fewer and fewer: an even pace would be 15
    assert all(line.startswith("hashing: 50 % of 100 B, ") for line in lines)
    assert all(line.endswith(" left") for line in lines)


def test_the_outermost_wait_is_shown_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("saving", unit="files", after=SOON, between=SOON) as outer:
        with Wait("hashing", unit="bytes", after=0, between=SOON):
            time.sleep(0.2)
        advance(3)
        assert outer.done == 3
    advance(1)  # nobody waits
    assert {line.partition(":")[0] for line in capsys.readouterr().err.splitlines()} == {"saving"}


def test_one_process_of_several_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with Wait("saving", after=0, between=SOON):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_an_error_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Wait("saving", after=60):
        raise KeyError
    assert Wait._shown is None


def be_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_on_a_terminal_there_is_one_line_that_goes_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_terminal(monkeypatch)
    with Wait("loading [model]", 4, "weights", after=SOON) as wait:
        for _ in wait.each(range(4)):
            time.sleep(0.15)
    shown = capsys.readouterr().err
    assert "loading [model]: " in shown
    assert "of 4 weights" in shown
    # Each drawing erases the one before, and the last one goes, too.
    assert shown.count("\x1b[2K") >= 2
    assert shown.rindex("\x1b[2K") > shown.rindex("loading")


def test_beside_a_bar_it_is_a_word_in_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_terminal(monkeypatch)
    with Bar("training", 10, unit="steps") as bar:
        bar.update(5, "loss 2.0")
        with Wait("evaluating", after=SOON):
            time.sleep(0.4)
        assert bar._bar.tasks[0].fields["status"] == "loss 2.0"
    assert Bar.live is None
    shown = capsys.readouterr().err
    assert "evaluating" in shown
