"""What is said after a preparation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import InspectConfig, PrepareConfig
from pipeline.inspection import inspect_prepared
from pipeline.store.manifest import read_manifest
from tests.conftest import record

Prepare = Callable[..., list[str]]


@pytest.fixture
def prepare(tmp_path: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Return a function that prepares records and returns the notes."""

    def run(records: list[Any], **options: Any) -> list[str]:
        (tmp_path / "x.json").write_text(json.dumps(records))
        pipeline.prepare(
            PrepareConfig(
                data_path=(str(tmp_path / "x.json"),),
                model_name_or_path=str(tiny_t5),
                output_dir=str(tmp_path / "out"),
                **options,
            )
        )
        said = capsys.readouterr().err.splitlines()
        return [line.partition("note: ")[2] for line in said if "note: " in line]

    return run


GOOD = [record(f"a{i}", f"q{i}", "a") for i in range(20)]
UNKNOWN = "\U00013000"


def test_plain_records_are_not_remarked_on(prepare: Prepare) -> None:
    assert prepare(GOOD) == []


def test_another_form_is_said_once(prepare: Prepare) -> None:
    more = [{"question": f"q{i}", "answer": "a"} for i in range(3)]
    assert prepare([*GOOD, *more]) == ["x.json: 3 of 23 records read as {question, answer}"]


def test_more_than_a_tenth_rejected_is_said_with_the_commonest_detail(prepare: Prepare) -> None:
    broken = [{"prompt": f"q{i}", "response": "a"} for i in range(3)]
    assert prepare([*GOOD, {"x": 1}, *broken]) == [
        "4 of 24 records were rejected; 3 of them for wrong_shape: no turns; keys: prompt, "
        "response; the nearest known form is {prompt, completion}"
    ]
    alien = [record(f"b{i}", *["q"] * (i + 1), "a", roles=("human", "alien")) for i in range(5)]
    (line,) = prepare([*GOOD, *alien])
    assert line == (
        "5 of 25 records were rejected; 5 of them for unknown_role: \"from\" of turn 1 is 'alien'; "
        "see --role; keys: conversations, id; the nearest known form is "
        "{conversations: [{from, value}, …]}"
    )


def test_a_tenth_rejected_is_not(prepare: Prepare) -> None:
    assert prepare([*GOOD, {}, {}]) == []


def test_lost_characters_above_one_percent_are_said(prepare: Prepare) -> None:
    more = [record("u", "q", f"x {UNKNOWN}"), record("v", "q", UNKNOWN)]
    assert prepare([*GOOD, *more]) == [
        "1 of 21 answers hold characters that the vocabulary does not know, and 1 more were of "
        f"nothing else; the commonest: {UNKNOWN}"
    ]


def test_a_split_that_is_empty_or_far_off_is_said(prepare: Prepare) -> None:
    (line,) = prepare(GOOD[:3], eval_fraction=0.01)
    assert line == ("the split eval is empty; --eval-fraction asked for 1.0% of the conversations")
    assert (
        prepare([record(f"sample_{i}", f"q{i}", "a") for i in range(200)], eval_fraction=0.3) == []
    )


def test_inspect_shows_what_was_read_and_the_commonest_rejections(
    prepare: Prepare, tmp_path: Path
) -> None:
    first = {**GOOD[0], "lang": "en", "score": 1}
    joined = [record("Abcdefg_0", "q", "a"), record("Abcdefg_2", "r", "b")]
    prepare([first, *GOOD[1:], *joined, {"question": "q", "answer": "a", "lang": "en"}, 5, {}, 6])
    (folder,) = [p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")]
    lines = list(inspect_prepared(InspectConfig(prepared=str(folder), rows=0, rejected=1)))
    text = "\n".join(lines)
    assert text[text.index("--- what was read") :].splitlines() == [
        "--- what was read",
        "x.json (json): 22 as lists of turns, 1 as {question, answer}; 3 rejected",
        "keys of records that nobody reads: lang 2, score 1",
        "keys of turns that nobody reads: none",
        "1 records were joined to the conversation that they go on with",
        "",
        f"--- the commonest rejections, one of each; all are in {folder / 'rejected.jsonl'}",
        "2 × wrong_shape: a record is an object, not a number; x.json record 23: 5",
    ]
    assert read_manifest(folder).unused_keys == {"records": {"lang": 2, "score": 1}, "turns": {}}
