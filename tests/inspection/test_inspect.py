"""``duet inspect``: which pairs, what was cut of them, what comes back, what a terminal gets."""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.config import InspectConfig, PrepareConfig
from pipeline.console.terminal import visible
from pipeline.inspection.fidelity import compare
from pipeline.inspection.left_out import dropped_lines
from pipeline.inspection.pairs import CUTS, PairReader
from pipeline.inspection.stage import json_lines
from pipeline.prepare.stage import prepare
from pipeline.store.manifest import read_manifest
from pipeline.tokenizer import load_tokenizer
from tests.conftest import SAMPLE, record

EVIL = "\x1b]0;title\x07\x1b[2J \u202e \x9b31m \u2028 end"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "prepared"


@pytest.fixture(scope="module")
def folder(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample and a conversation full of what a terminal would obey, cut to a small window."""
    path = tmp_path_factory.mktemp("inspect")
    records = [*json.loads(SAMPLE.read_text(encoding="utf-8")), record("evil_1", EVIL, EVIL)]
    records.append({"id": EVIL, "conversations": [{"from": EVIL, "value": EVIL}]})
    (path / "chats.json").write_text(json.dumps(records), encoding="utf-8")
    config = PrepareConfig(
        data_path=(str(path / "chats.json"),),
        model_name_or_path=str(tiny_t5),
        output_dir=str(path / "out"),
        model_max_length=192,
    )
    return Path(prepare(config))


def pairs(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in json_lines(InspectConfig(prepared=str(folder), **settings))
    ]


def reader(folder: Path, split: str = "train") -> PairReader:
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    return PairReader(folder, read_manifest(folder), split, tokenizer)


def test_the_cuts_that_are_seen_are_those_that_were_counted(folder: Path) -> None:
    for prepared, splits in ((folder, ["train"]), (GOLDEN, ["train", "eval"])):
        found = Counter[str]()
        for split in splits:
            there = reader(prepared, split)
            for row in range(there.table.num_rows):
                found.update(there.read(row).cuts)
        reasons = read_manifest(prepared).counts["reasons"]
        fit = found["question_cut"] - reasons.get("question_cut", 0)
        assert fit in ((0,) if prepared == GOLDEN else (0, 1, 2))  # to the token, by chance
        found["question_cut"] -= fit
        assert {cut: found[cut] for cut in CUTS} == {cut: reasons.get(cut, 0) for cut in CUTS}


def test_pairs_are_chosen_by_conversation_length_text_and_cut(folder: Path) -> None:
    everything = pairs(folder, rows=10_000)
    size = [pair["encoder_tokens"] + pair["decoder_tokens"] for pair in everything]
    assert [pair["row"] for pair in everything] == list(range(len(everything)))
    assert len(pairs(folder)) == 3
    longest = pairs(folder, longest=True, rows=5)
    assert [p["encoder_tokens"] + p["decoder_tokens"] for p in longest] == sorted(size)[:-6:-1]
    one = everything[5]["conversation_id"]
    assert pairs(folder, conversation=one) == [
        pair for pair in everything if pair["conversation_id"] == one
    ]
    text = [p for p in everything if re.search("(?i)canberra", p["encoder"] + "\n" + p["decoder"])]
    assert text
    assert pairs(folder, grep="(?i)canberra", rows=99) == text
    cut = [pair for pair in everything if "answer_cut" in pair["cuts"]]
    assert pairs(folder, dropped="answer_cut", rows=99) == cut
    assert pairs(folder, dropped="answer_cut", rows=2) == cut[:2]


def test_rejected_records_are_shown_by_reason(folder: Path) -> None:
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    rejected = [json.loads(line) for line in lines]
    unknown = [found for found in rejected if found["reason"] == "unknown_role"]
    assert len(unknown) == 2
    assert pairs(folder, dropped="unknown_role") == unknown
    assert pairs(folder, dropped="unknown_role", rows=1) == unknown[:1]


def test_a_record_that_is_cut_ends_with_an_ellipsis() -> None:
    found = {"file": "x.json", "position": 3, "detail": "no turns", "record": ["x" * 999]}
    (line,) = dropped_lines([found])
    assert line.plain.startswith('no turns; x.json record 3: ["xxx')
    assert line.plain.endswith("x …")
    (line,) = dropped_lines([found | {"record": ["x"]}])
    assert line.plain.endswith(': ["x"]')


def test_tokens_are_parted_where_the_vocabulary_parts_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = pairs(folder, tokens=True, rows=1)[0]
    assert len(pair["decoder_pieces"]) == pair["decoder_tokens"]
    assert run(["inspect", str(folder), "--rows", "1", "--tokens"]) == 0
    shown = capsys.readouterr().out
    words = [visible(piece) for piece in pair["encoder_pieces"][:9]]
    assert "│".join(words) in shown
    assert shown.count("│") == pair["encoder_tokens"] + pair["decoder_tokens"]


def test_answers_are_compared_with_the_data(folder: Path) -> None:
    """By hand: each answer of a plain record that is a row and was not cut."""
    data = [str(folder.parent.parent / "chats.json")]
    there = reader(folder)
    rows = [there.read(row) for row in range(there.table.num_rows)]
    found = compare(rows, data, read_manifest(folder).config)
    assert found.missing == 0
    assert found.cut == sum("answer_cut" in pair.cuts for pair in rows)
    assert found.equal + len(found.different) + found.cut == len(rows)
    assert found.equal > 40
    texts = json.loads(Path(data[0]).read_text(encoding="utf-8"))
    plain = [r for r in texts if r.keys() == {"id", "conversations"}]
    by_id = {r["id"]: r["conversations"] for r in plain if isinstance(r["conversations"], list)}
    checked = 0
    for pair in rows:
        turns = by_id.get(pair.conversation_id, [])
        if pair.turn < len(turns) and "answer_cut" not in pair.cuts and "value" in turns[0]:
            text = turns[pair.turn]["value"].replace("\r\n", "\n")  # by the contract
            assert ((pair, text) in found.different) == (pair.decoder != text)
            checked += 1
    assert checked > 40
    other = compare(rows, [str(SAMPLE)], read_manifest(folder).config)
    assert other.missing == 1  # of the conversation that is not in the sample


def test_the_data_are_found_by_the_settings_beside_the_rows(
    tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-name-or-path", str(tiny_t5), "--output-dir", str(tmp_path)]
    assert run(["prepare", "--data-path", str(SAMPLE), *flags]) == 0
    prepared = capsys.readouterr().out.strip()
    for more, expected in (([], True), (["--fidelity", "0"], False)):
        assert run(["inspect", prepared, *more]) == 0
        assert ("answers (" in capsys.readouterr().out) is expected
    Path(prepared, "config.yaml").write_text("- broken", encoding="utf-8")
    assert run(["inspect", prepared]) == 0
    assert "answers (" not in capsys.readouterr().out
    assert run(["inspect", prepared, "--data-path", str(SAMPLE)]) == 0
    assert "answers (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--conversation", "nobody"], ["no such conversation", "nobody"]),
        (["--grep", "("], ["--grep", "unterminated"]),
        (["--dropped", "frobnicate"], ["--dropped", "answer_cut", "unknown_role"]),
    ],
)
def test_what_is_not_there_is_one_line(
    folder: Path, flags: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(folder), *flags]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert all(part in line for part in parts)


def is_obeyed(text: str) -> bool:
    return any(
        ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028" for c in text if c != "\n"
    )


def test_no_control_character_of_the_data_reaches_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (
        ["--rows", "999", "--rejected", "99"],
        ["--conversation", "evil_1"],
        ["--conversation", "evil_1", "--tokens"],
        ["--conversation", "evil_1", "--jsonl", "--tokens"],
        ["--dropped", "unknown_role"],
        ["--dropped", "unknown_role", "--jsonl"],
    ):
        assert run(["inspect", str(folder), *flags]) == 0
        shown = capsys.readouterr().out
        assert not is_obeyed(shown.replace("\t", "")), flags
    assert pairs(folder, dropped="unknown_role")[1]["record"]["id"] == EVIL


def on_terminal(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str, **environment: str
) -> str:
    pages: list[str] = []
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("pydoc.pager", pages.append)
    assert run(["inspect", str(folder), *flags]) == 0
    (page,) = pages
    return page


def test_a_terminal_gets_pages_in_colour(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = on_terminal(monkeypatch, folder, "--dropped", "answer_cut", "--rows", "1")
    assert "\x1b[1;36m### Human:\x1b[0m" in page
    assert "\x1b[1;31m✂ the answer is cut here\x1b[0m" in page
    assert capsys.readouterr().out == ""
    # Nothing of the data but what styles it.
    evil = on_terminal(monkeypatch, folder, "--conversation", "evil_1")
    assert not is_obeyed(re.sub(r"\x1b\[[0-9;]*m", "", evil))


def test_lines_are_broken_between_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = on_terminal(monkeypatch, folder, "--rows", "9", COLUMNS="50", NO_COLOR="1")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", page)
    assert max(map(len, shown.splitlines())) <= 50
    assert re.search(r"and an artificial ?\nintelligence assistant", shown)


def test_no_color_takes_the_colours_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = on_terminal(monkeypatch, folder, "--rows", "1", NO_COLOR="1")
    codes = {code for group in re.findall(r"\x1b\[([0-9;]*)m", page) for code in group.split(";")}
    assert codes <= {"0", "1", "2", ""}  # bold and dim at most


def test_what_is_searched_is_marked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = on_terminal(monkeypatch, folder, "--grep", "Canberra", "--rows", "1")
    assert "\x1b[30;43mCanberra\x1b[0m" in page
