"""Whole pages: well formed, without network or script, with every text as text."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.config import PrepareConfig
from pipeline.errors import DuetError
from pipeline.prepare.stage import prepare
from pipeline.report.config import ReportConfig
from pipeline.report.page import render
from pipeline.report.stage import report
from pipeline.report.svg import INK, StyleSheet
from tests.conftest import ROOT, run_python
from tests.report.reading import TAGS, Page
from tests.report.test_runs import ENTRIES, write_log

pytest.importorskip("matplotlib", reason="pip install 'duet-t5[report]'")

GOLDEN = ROOT / "tests" / "golden"
HOSTILE = (
    "</style></title><script>alert(1)</script><img src=http://e.vil/x onerror=a()>&amp;'\"{{7*7}}"
)


def check(path: Path) -> Page:
    """Read a page, and hold it to what is true of every page."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert {element.tag for element in page.all} <= TAGS
    for element in page.all:
        for name, value in element.attributes.items():
            assert name != "style" and not name.startswith("on"), (element.tag, name)
            if name in ("href", "src"):
                assert value.startswith("#"), value
    (style,) = page.find("style")
    digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    (meta,) = [element for element in page.find("meta") if "http-equiv" in element.attributes]
    policy = meta.attributes["content"]
    assert policy.startswith("default-src 'none';") and f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and "url(" not in style.text and "@import" not in style.text
    ids = [element.attributes["id"] for element in page.all if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert links and set(links) <= set(ids)
    figures = page.find("figure")
    for figure in figures:
        (svg,) = [e for e in figure.find("svg") if "role" in e.attributes]
        assert len(svg.attributes["aria-label"]) > 20
        assert figure.find("details")[0].find("table")[0].find("td")
    colors = re.findall(r"#[0-9a-f]{6}\b", style.text.split("@media print")[1])
    assert not colors, "a picture has a colour that is not the page's"
    return page


def test_a_prepared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(GOLDEN / "prepared", tmp_path / "data"))
    assert run(["report", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/data.report.html\n"
    assert all(line.startswith("drawing") for line in err.splitlines())  # on a busy machine
    page = check(Path(out.strip()))
    titles = [heading.text for heading in page.find("h2")]
    assert titles == [
        "Overview", "Lengths and padding", "Another window", "Left out and cut", "Pairs",
        "Sources and settings",
    ]  # fmt: skip
    facts = {d.children[0].text: d.children[1].text for d in page.find("dl")[0].find("div")}
    assert (facts["records"], facts["pairs"], facts["encoder tokens"]) == ("11", "11", "1,789")
    assert ["history_cut", "1", "pairs without their oldest turns"] in page.table("By reason")
    assert page.table("Tokens of a row")[1:] == [
        ["encoder", "162", "209", "240", "240"],
        ["decoder", "8", "43", "60", "60"],
    ]
    windows = page.table("Rows that are cut")
    assert windows[1] == [
        "240", "2 (18.2 %)", "1 (9.1 %)", "0", "1,789", "100%",
    ]  # fmt: skip
    lengths = page.table("Encoder and decoder tokens of each row")
    assert sum(int(row[-1]) for row in lengths[1:]) == 11
    rejected = page.block("Rejected records, one of each kind").text
    assert "\"from\" of turn 0 is 'alien'; see --role" in rejected and "alien_0" in rejected
    assert "conversations.json, record 10" in rejected


def test_a_manifest_that_says_little_is_enough(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "prepared", tmp_path / "data"))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("counts", "config", "tokens", "unused_keys", "versions"):
        manifest[name] = {}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sources": []}))
    page = check(report(ReportConfig(folders=(str(folder),))))
    facts = {d.children[0].text: d.children[1].text for d in page.find("dl")[0].find("div")}
    assert facts == {"pairs": "11", "encoder tokens": "1,789", "decoder tokens": "194"}
    assert page.table("Rows that are cut")[1][0] == "240"


def test_a_page_is_the_same_each_time(tmp_path: Path) -> None:
    texts = []
    for name in ("a.html", "b.html"):
        config = ReportConfig(folders=(str(GOLDEN / "prepared"),), output_path=str(tmp_path / name))
        texts.append(report(config).read_bytes())
    assert texts[0] == texts[1]


def test_pairs_stand_as_they_were_said(tmp_path: Path) -> None:
    path = report(
        ReportConfig(
            folders=(str(GOLDEN / "prepared"),), output_path=str(tmp_path / "x.html"), pairs=100
        )
    )
    page = check(path)
    chats = page.find("article")
    assert len(chats) == 8  # those of the split train
    golden = (GOLDEN / "pairs.txt").read_text(encoding="utf-8")
    for chat in chats:
        for bubble in chat.find("div"):
            if bubble.attributes["class"] == "said":
                lines = [line.strip() for line in bubble.text.split("\n")]
                assert all(line in golden for line in lines), lines


def test_a_hostile_data_set_stays_text(tmp_path: Path) -> None:
    records: list[Any] = [
        {
            "id": HOSTILE,
            HOSTILE: 1,
            "conversations": [
                {"from": "human", "value": f"### Human: {HOSTILE}\x07"},
                {"from": "gpt", "value": f"{HOSTILE}\n\ud800 ☠", HOSTILE: 2},
            ],
        },
        {"id": "other", "conversations": [{"from": HOSTILE, "value": HOSTILE}]},
    ]
    source = tmp_path / "<b>&.json"
    source.write_text(json.dumps(records))
    folder = prepare(
        PrepareConfig(
            data_path=(str(source),),
            model_name_or_path=str(GOLDEN / "model"),
            output_dir=str(tmp_path / "out"),
            num_workers=1,
        )
    )
    page = check(report(ReportConfig(folders=(str(folder),))))
    text = page.root.text
    assert text.count("<script>alert(1)</script>") >= 5
    assert "{{7*7}}" in text and "49" not in page.block("Other keys, not used").text
    assert HOSTILE in page.find("article")[0].find("h3")[0].text
    assert f"{HOSTILE} (turns)" in [row[0] for row in page.table("Other keys, not used")]
    assert page.table("What was read")[1][0] == "<b>&.json"
    assert "☠" in [row[0] for row in page.table(page.find("section")[4].find("h3")[0].text)]


def test_hostile_runs_stay_text(tmp_path: Path) -> None:
    entries = [{**entry, f"eval_{HOSTILE}_loss": 1.0, HOSTILE: 2.0} for entry in ENTRIES]
    for name in ("<i>a $x$", "_b"):
        folder = write_log(tmp_path / name, entries)
        metadata = {"settings": {HOSTILE: name, "hub_token": "secret"}, "command": HOSTILE}
        (folder / "run.json").write_text(json.dumps(metadata))
        sample = {"step": 4, "question": HOSTILE, "answer": HOSTILE + "\ud800\x00", "turn": HOSTILE}
        (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    folders = tuple(str(tmp_path / name) for name in ("<i>a $x$", "_b"))
    path = report(ReportConfig(folders=folders))
    assert path == tmp_path / "<i>a $x$+_b.report.html"
    page = check(path)
    assert page.table("Settings that differ")[1] == [HOSTILE, "<i>a $x$", "_b"]
    assert "secret" not in page.root.text
    legend = [entry.text for entry in page.block("Loss").find("li")]
    assert "<i>a $x$: training" in legend and f"_b: eval {HOSTILE}" in legend
    (answers,) = [s for s in page.find("section") if s.attributes["id"] == "answers"]
    assert HOSTILE + "\ufffd\u2400" in answers.text


def test_answers_of_a_run_stand_side_by_side_by_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = write_log(tmp_path / name)
        lines = [
            {"step": step, "question": "q?", "answer": f"{name}{step}", "reference": "r"}
            | ({"finish_reason": "length"} if step == 4 else {})
            for step in (4, 2)
        ]
        (folder / "samples.jsonl").write_text("".join(json.dumps(li) + "\n" for li in lines))
    page = check(report(ReportConfig(folders=(str(tmp_path / "a"), str(tmp_path / "b")))))
    block = page.block("q?")
    rows = [e for e in block.find("div") if "columns" in e.attributes["class"].split()]
    said = [[e.text for e in row.find("div") if e.attributes["class"] == "said"] for row in rows]
    assert said == [["a2", "a4"], ["b2", "b4"]]
    titles = [e.text for e in block.find("div") if e.attributes["class"] == "who"]
    assert titles == ["in the data", "a, step 2", "a, step 4, cut", "b, step 2", "b, step 4, cut"]


def test_one_run_has_its_figures_at_the_top(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "out")
    (folder / "trainer_state.json").write_text(json.dumps({"max_steps": 8, "log_history": []}))
    page = check(report(ReportConfig(folders=(str(folder),))))
    parts_of = {d.children[0].text: d.children[1:] for d in page.find("dl")[0].find("div")}
    facts = {name: " ".join(part.text for part in parts) for name, parts in parts_of.items()}
    assert facts == {
        "steps": "4 of 8",
        "last loss": "3",
        "mean loss of all steps": "3.5",
        "best eval_loss": "3.5 at step 4",
        "best eval_bits_per_byte": "1.25 at step 4",
        "best eval_held_loss": "3.75 at step 4",
    }


def test_a_run_without_an_entry_yet_is_a_page(tmp_path: Path) -> None:
    page = check_without_pictures(report(ReportConfig(folders=(str(write_log(tmp_path, [])),))))
    assert [heading.text for heading in page.find("h2")] == ["Overview"]


def check_without_pictures(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.find("figure")
    return page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["neither a prepared folder nor", "nothing there", "do: give the path"]),
        (["empty"], ["no manifest.json, log.jsonl, trainer_state.json"]),
        (["file"], ["got: a file"]),
        (["run", "empty"], ["where: empty"]),
        (["data", "run"], ["one prepared folder, or runs", "give it alone"]),
        (["data", "--output-path", "data/x.html"], ["where: --output-path", "outside of it"]),
        (["run", "--output-path", "empty"], ["cannot write", "empty"]),
        (["broken"], ["a file of a run cannot be read", "line 1"]),
        (["damaged"], ["a file of the prepared folder is missing or damaged"]),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    write_log(Path("run"))
    write_log(Path("broken"), [], end="{\n")
    shutil.copytree(GOLDEN / "prepared", "data")
    shutil.copytree(GOLDEN / "prepared", "damaged")
    Path("damaged/train/shard-00000.arrow").write_bytes(b"x")
    assert run(["report", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    assert all(word in err for word in words), err
    assert not list(tmp_path.glob("**/*.html"))


def test_a_missing_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DuetError, match="a package is not installed") as caught:
        report(ReportConfig(folders=(str(write_log(tmp_path / "out")),)))
    assert caught.value.do == "pip install 'duet-t5[report]'"


def test_a_report_imports_no_torch_and_help_no_matplotlib() -> None:
    code = (
        "import sys\nimport pipeline.cli\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import pipeline.report.dataset.sections, pipeline.report.run.sections\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_what_is_put_into_a_page_as_it_is() -> None:
    """Only pictures and the page's style, which no text of data is in."""
    template = (ROOT / "pipeline" / "report" / "page.html.jinja").read_text(encoding="utf-8")
    assert re.findall(r"\{\{ (\S+) \| safe \}\}", template) == ["block.svg", "style"]
    assert template.count("safe") == 2 and "autoescape" not in template


def test_a_colour_that_is_not_the_pages_is_refused() -> None:
    sheet = StyleSheet()
    assert sheet.class_of(f"fill: {INK}; font-family: 'X'") == "p0"
    assert sheet.text == ".p0 { fill: var(--ink) }"
    with pytest.raises(KeyError):
        sheet.class_of("fill: #123456")


def test_sections_without_a_block_are_left_out() -> None:
    from pipeline.report.page import Facts, Section

    full = Section(id="a", title="A", blocks=[Facts(facts=[("x", "1", "")])])
    empty = dataclasses.replace(full, id="b", title="B", blocks=[])
    page = Page(render("t", "s", [full, empty], StyleSheet()))
    assert [heading.text for heading in page.find("h2")] == ["A"]
