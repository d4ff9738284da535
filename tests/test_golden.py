"""The golden case: a literal input, and the literal pairs and ids that it must give.

``golden/conversations.json`` is read with ``golden/model`` at a window of 240 tokens and targets
of 60; ``pairs.txt`` is what a person reads, ``ids.jsonl`` the ids, ``prepared/`` the finished
folder. Whoever changes the format on purpose runs ``scripts/golden.py`` and reads the difference.
"""

import filecmp
import json
from pathlib import Path

import pytest

from pipeline.store.manifest import read_manifest
from pipeline.store.shards import open_split
from scripts import golden

GOLDEN = golden.GOLDEN


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.prepare(tmp_path_factory.mktemp("golden"))


def test_the_ids_are_these(prepared: Path) -> None:
    lines = (GOLDEN / "ids.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [json.loads(line) for line in lines]
    assert [row for _, row in golden.golden_rows(prepared)] == expected


def test_a_person_reads_these_pairs(prepared: Path) -> None:
    text = golden.pairs_text(prepared, golden.golden_rows(prepared))
    assert text == (GOLDEN / "pairs.txt").read_text(encoding="utf-8")


def test_the_two_cases_that_others_get_wrong() -> None:
    """They stand in the golden files; this says which they are and why they are right."""
    pairs = (GOLDEN / "pairs.txt").read_text(encoding="utf-8")
    # An answer that was cut has no ending: </s> there would teach the model to stop half-way.
    cut_answer = pairs.split("=== answer_0")[1].split("--- answer\n")[1].split("\n===")[0]
    assert cut_answer.startswith("one two three")
    assert not cut_answer.endswith("</s>")
    # A question that was cut keeps its tag and its end: the end is what is asked.
    cut_question = pairs.split("=== question_0")[1].split("--- answer")[0]
    assert "### Human:" in cut_question
    assert "its END.\n### Assistant:</s>" in cut_question
    assert "The beginning" not in cut_question


def test_the_prepared_folder_is_this_one(prepared: Path) -> None:
    golden = GOLDEN / "prepared"
    names = sorted(p.relative_to(golden).as_posix() for p in golden.rglob("*") if p.is_file())
    assert names == sorted(
        p.relative_to(prepared).as_posix() for p in prepared.rglob("*") if p.is_file()
    )
    # The manifest names versions, state.json hashes; Arrow's bytes may differ by its version.
    same = [n for n in names if not n.endswith((".arrow", "manifest.json", "state.json"))]
    assert filecmp.cmpfiles(golden, prepared, same, shallow=False)[1:] == ([], [])
    manifests = [read_manifest(folder) for folder in (golden, prepared)]
    for field in ("fingerprint", "config", "sources", "counts", "tokens"):
        assert getattr(manifests[0], field) == getattr(manifests[1], field)
    for split in ("train", "eval"):
        tables = [
            open_split(f, m, split) for f, m in zip((golden, prepared), manifests, strict=True)
        ]
        assert tables[0].equals(tables[1])
        assert tables[0].schema == tables[1].schema
