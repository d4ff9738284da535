"""What is said after a preparation."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config import InspectConfig, PrepareConfig
from pipeline.errors import InputError
from pipeline.inspection import inspect_prepared
from pipeline.prepare.read.remedies import REMEDIES
from pipeline.store.manifest import read_manifest
from tests.conftest import record

Prepare = Callable[..., list[str]]


@pytest.fixture
def prepare(tmp_path: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Return a function that prepares records and returns the notes."""

    def run(records: list[Any], **options: Any) -> list[str]:
        (tmp_path / "x.json").write_text(json.dumps(records))
        options.setdefault("data_path", (str(tmp_path / "x.json"),))
        pipeline.prepare(
            PrepareConfig(
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


def test_a_file_that_ends_too_early_is_said(prepare: Prepare, tmp_path: Path) -> None:
    whole = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(GOOD * 9), whole, row_group_size=20)
    content = bytearray(whole.getvalue())
    content[len(content) // 2 : len(content) // 2 + 99] = bytes(99)
    (tmp_path / "y.parquet").write_bytes(content)
    (tmp_path / "z.json").write_text(json.dumps(GOOD)[:-60])
    paths = tuple(str(tmp_path / name) for name in ("x.json", "y.parquet", "z.json"))
    damaged, cut = prepare(GOOD, data_path=paths)
    rest = "; what comes after that is not in the data"
    assert damaged.startswith("y.parquet: the file is cut off or damaged (")
    assert damaged.endswith(f" (broken_parquet){rest}")
    assert cut == f"z.json: the file ends inside a record (cut_off){rest}"


CAUSES = {
    "broken_json": b'{"id" 1}\n{"id" 2}\n',
    "cut_off": json.dumps(GOOD)[:30].encode(),
    "invalid_utf8": json.dumps(GOOD[:1]).encode().replace(b"q0", b"\xe9"),
    "broken_parquet": b"PAR1" + bytes(100),
    "broken_arrow": b"ARROW1" + bytes(100),
    "no_turns": b'{"conversations": []}',
    "not_text": json.dumps(GOOD[0] | {"images": ["a.png"]}).encode(),
    "unknown_role": json.dumps(record("a", "q", "a", roles=("x", "y"))).encode(),
    "wrong_shape": b'{"text": "x"}\n{"text": "y"}\n{"conversations": []}',
    "answer_without_question": json.dumps(record("a", "a", roles=("gpt",))).encode(),
    "question_without_answer": json.dumps(record("a", "q")).encode(),
    "empty_answer": json.dumps(record("a", "q", "\u200b")).encode(),
    "unknown_answer": json.dumps(record("a", "q", UNKNOWN)).encode(),
    "not_trained": json.dumps(
        [{"role": "user", "content": "q"}, {"role": "ai", "content": "a", "weight": 0}]
    ).encode(),
}
BY_A_TEMPLATE = {"template_refused"}
"""Wants a model with a chat template of its own: ``tests/test_model_template.py``."""


@pytest.mark.parametrize("reason", sorted(REMEDIES.keys() - BY_A_TEMPLATE))
def test_the_advice_fits_the_cause(prepare: Prepare, tmp_path: Path, reason: str) -> None:
    (tmp_path / "y").write_bytes(CAUSES[reason])
    with pytest.raises(InputError, match="no pair is left") as raised:
        prepare([], data_path=(str(tmp_path / "y"),))
    assert raised.value.do == REMEDIES[reason]
    assert f"({reason} " in raised.value.got or f", {reason} " in raised.value.got
    assert '"reason"' not in raised.value.got, "in words, not in JSON"
    assert not raised.value.got.startswith("1 records")


def test_more_than_a_tenth_rejected_is_said_with_the_commonest_detail(prepare: Prepare) -> None:
    broken = [{"prompt": f"q{i}", "response": "a"} for i in range(3)]
    assert prepare([*GOOD, {"x": 1}, *broken]) == [
        "4 of 24 records were rejected; 3 of them for wrong_shape: no turns; keys: prompt, "
        "response; the nearest known form is {prompt, completion}; the first is record 21 of "
        f"x.json; {REMEDIES['wrong_shape']}"
    ]
    alien = [record(f"b{i}", *["q"] * (i + 1), "a", roles=("human", "alien")) for i in range(5)]
    (line,) = prepare([*GOOD, *alien])
    assert line == (
        "5 of 25 records were rejected; 5 of them for unknown_role: \"from\" of turn 1 is 'alien'; "
        "see --role; keys: conversations, id; the nearest known form is "
        "{conversations: [{from, value}, …]}; the first is record 20 of x.json; "
        f"{REMEDIES['unknown_role']}"
    )


@pytest.mark.parametrize("good", [[], GOOD[:1]])
def test_a_number_of_any_size_stands_in_what_is_rejected(
    prepare: Prepare, tmp_path: Path, good: list[Any]
) -> None:
    text = json.dumps([*good, record("a", "q", "a", roles=("human", "alien"))])
    path = tmp_path / "long.json"
    path.write_text(text.replace('"id": "a"', f'"x": {"1" * 5_000}, "id": "a"'))
    if good:
        (line,) = prepare([], data_path=(str(path),))
        assert "1 of 2 records were rejected; 1 of them for unknown_role" in line
    else:
        with pytest.raises(
            InputError, match=r"record 0 of long\.json: unknown_role: .*; \{.*.x.: 11"
        ):
            prepare([], data_path=(str(path),))


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
    assert line == ("the eval split is empty; --eval-fraction asked for 1.0% of the conversations")
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
    (other,) = [line.split() for line in lines if "other keys  " in line]  # one line, no warning
    assert " ".join(other) == "other keys 2 of records, not used: 'lang', 'score'"
    assert text[text.index("--- what was read") :].splitlines() == [
        "--- what was read",
        "x.json (json): 22 as lists of turns, 1 as {question, answer}; 3 rejected",
        "other keys of records, not used: lang 2, score 1",
        "records joined to the conversation before them: 1",
        "",
        f"--- the most common rejections, one of each; all are in {folder / 'rejected.jsonl'}",
        "2 × wrong_shape: a record is an object, not a number; x.json record 23: 5",
    ]
    assert read_manifest(folder).unused_keys == {"records": {"lang": 2, "score": 1}, "turns": {}}


def test_files_that_were_skipped_are_in_the_table_of_every_run(
    tmp_path: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps(GOOD))
    (folder / "README.md").write_text("# Chats")
    config = PrepareConfig(
        data_path=(str(folder),), model_name_or_path=str(tiny_t5), output_dir=str(tmp_path / "out")
    )
    for _ in range(2):  # the second finds what the first made
        pipeline.prepare(config)
        (row,) = [r for r in capsys.readouterr().err.splitlines() if r.startswith("files skipped")]
        assert row.split() == ["files", "skipped", "1", "no", "records", "in", "them"]
