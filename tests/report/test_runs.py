"""What is read of a run's folder, and what stands in its tables."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.report.run.curves import MOST_POINTS, condensed, curve_pictures
from pipeline.report.run.output import Run, Sample, is_run, read_run, samples_of
from pipeline.report.svg import StyleSheet

pytest.importorskip("matplotlib", reason="pip install 'duet-t5[report]'")

ENTRIES: list[dict[str, Any]] = [
    {"loss": 4.0, "learning_rate": 0.01, "grad_norm": 1.5, "mfu": 0.25, "step": 2},
    {"loss": 3.0, "learning_rate": 0.005, "grad_norm": None, "mfu": 0.5, "step": 4},
    {"eval_loss": 3.5, "eval_bits_per_byte": 1.25, "eval_held_loss": 3.75, "step": 4},
    {"train_loss": 3.5, "train_runtime": 9.0, "step": 4},
]


def write_log(folder: Path, entries: list[dict[str, Any]] = ENTRIES, end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "log.jsonl").write_text(text + end)
    return folder


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = read_run(write_log(tmp_path), "a")
    assert run.series("loss") == ([2, 4], [4.0, 3.0])
    assert run.series("eval_held_loss") == ([4], [3.75])
    assert math.isnan(run.series("grad_norm")[1][1])
    assert run.last_step == 4 and run.total_steps is None


def test_a_line_that_is_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_run(write_log(tmp_path / "a", end='{"loss": 2.'), "a").last_step == 4
    with pytest.raises(InputError, match="line 5") as caught:
        read_run(write_log(tmp_path / "b", end='{"loss": 2.\n{}\n'), "b")
    assert caught.value.where.endswith("log.jsonl")


def test_the_newest_checkpoint_stands_in_for_a_log(tmp_path: Path) -> None:
    for step in (4, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = {"log_history": [{"loss": 1.0, "step": step}], "max_steps": 20}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    assert is_run(tmp_path)
    run = read_run(tmp_path, "a")
    assert (run.last_step, run.total_steps) == (12, 20)
    assert not is_run(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["[1]", "{", "\xff"])
def test_a_state_that_is_no_object_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="a file of a run cannot be read"):
        read_run(tmp_path, "a")


def test_entries_that_are_none_are_left_out(tmp_path: Path) -> None:
    strange: list[Any] = [3, None, {"loss": 1.0}, {"loss": "x", "step": 1}, {"step": True}]
    strange += [{"loss": 1e999, "step": 2}, {"loss": 10**400, "step": 3}, {"step": math.nan}]
    run = read_run(write_log(tmp_path, strange), "a")
    assert [entry["step"] for entry in run.entries] == [1, 2, 3]
    assert run.series("loss") == ([2], [math.inf])
    assert len(list(curve_pictures([run], StyleSheet()))) == 1


def test_samples_of_lines_in_several_forms() -> None:
    expected = Sample(step=5, question="q", answer="a", reference="r", name="c, turn 3")
    flat = {"step": 5, "question": "q", "answer": "a", "reference": "r"}
    flat |= {"conversation_id": "c", "turn": 3}
    assert list(samples_of(flat)) == [expected]
    nested = {"step": 5, "samples": [{k: v for k, v in flat.items() if k != "step"}, "x"]}
    assert list(samples_of(nested)) == [expected]
    turns = [{"role": "user", "content": "hi"}, {"from": "gpt", "value": "ho"}]
    (sample,) = samples_of({"step": 1, "messages": turns, "generated": "x"})
    assert (sample.question, sample.answer) == ("user: hi\ngpt: ho", "x")
    for other in (None, [], {}, {"step": 1}, {"step": "1", "answer": "a"}, {"answer": "a"}):
        assert list(samples_of(other)) == []


def test_tables_have_the_values_of_the_log(tmp_path: Path) -> None:
    run = read_run(write_log(tmp_path), "a")
    pictures = {picture.title: picture for picture in curve_pictures([run], StyleSheet())}
    assert list(pictures) == [
        "Loss", "Bits per byte", "Learning rate", "Gradient norm", "Share of peak",
    ]  # fmt: skip
    loss = pictures["Loss"].table
    assert loss.header == ["step", "training", "eval", "eval held"]
    assert loss.rows == [["2", "4", "", ""], ["4", "3", "3.5", "3.75"]]
    assert pictures["Gradient norm"].table.rows == [["2", "1.5"], ["4", "not finite"]]
    assert pictures["Share of peak"].table.rows == [["2", "25.0 %"], ["4", "50.0 %"]]
    assert [key.name for key in pictures["Loss"].legend] == ["training", "eval", "eval held"]


def test_two_runs_stand_in_one_picture_with_a_colour_each(tmp_path: Path) -> None:
    other = [{**entry, "loss": 9.0} for entry in ENTRIES[:1]]
    runs = [
        read_run(write_log(tmp_path / "a"), "a"),
        read_run(write_log(tmp_path / "b", other), "b"),
    ]
    loss = next(curve_pictures(runs, StyleSheet()))
    assert [(key.name, key.color, key.dash) for key in loss.legend] == [
        ("a: training", 1, 0), ("a: eval", 1, 1), ("a: eval held", 1, 2), ("b: training", 2, 0),
    ]  # fmt: skip
    assert loss.table.rows[0] == ["2", "4", "", "", "9"]


def test_many_entries_become_means() -> None:
    xs, ys = condensed(list(range(1, 1001)), [float(i % 5) for i in range(1000)])
    assert len(xs) == len(ys) == 200 <= MOST_POINTS
    assert set(ys) == {2.0} and xs[:2] == [5, 10] and xs[-1] == 1000
    run = Run(name="a", entries=[{"step": float(i), "loss": 1.0} for i in range(1000)])
    (picture,) = curve_pictures([run], StyleSheet())
    assert picture.table.note == "Each point is the mean of up to 5 entries."
