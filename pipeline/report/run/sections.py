"""Runs -> the sections of their page: one run, or several over one another."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.report.charts import number
from pipeline.report.page import (
    Block,
    Column,
    Facts,
    Row,
    Section,
    SideBySide,
    Table,
    TableBlock,
    shorten,
)
from pipeline.report.run.curves import curve_pictures
from pipeline.report.run.output import Run, Sample
from pipeline.report.svg import SERIES, StyleSheet

_MOST_QUESTIONS = 12
_LONGEST = 1_600
"""Characters of an answer or a question that are shown."""
_UNSEEN = ("output_dir", "run_name", "hub_token")


def run_sections(runs: Sequence[Run], sheet: StyleSheet) -> Iterator[Section]:
    """Yield the sections of one or more runs."""
    yield Section(id="overview", title="Overview", blocks=[_overview(runs)])
    different = _differences(runs)
    if different:
        yield Section(id="differences", title="What differs", blocks=different)
    steps = {run.metadata.get("rows_per_step") for run in runs}
    yield Section(
        id="curves",
        title="Curves",
        text="The runs differ in their global batch size: a step is not the same in each."
        if len(steps) > 1
        else "",
        blocks=list(curve_pictures(runs, sheet)),
    )
    yield Section(
        id="answers",
        title="Sample answers",
        text="What the model answered at each evaluation. Cut: stopped at the greatest length.",
        blocks=list(_answers(runs)),
    )
    yield Section(id="settings", title="Settings", blocks=list(_settings(runs)))


def _overview(runs: Sequence[Run]) -> Block:
    if len(runs) == 1:
        return Facts(facts=[(name, *fact) for name, fact in _facts(runs[0]).items()])
    facts = [{name: " ".join(f).strip() for name, f in _facts(run).items()} for run in runs]
    names = list(dict.fromkeys(name for found in facts for name in found))
    return TableBlock(
        title="Runs",
        table=Table(
            header=["", *(run.name for run in runs)],
            rows=[[name, *(found.get(name, "") for found in facts)] for name in names],
            words=range(1, len(runs) + 1),
        ),
    )


def _facts(run: Run) -> dict[str, tuple[str, str]]:
    """Return values by name, each with a remark."""
    of = f"of {run.total_steps:,}" if run.total_steps else ""
    found = {"steps": (f"{run.last_step:,}", of)}
    for name, title in (
        ("epoch", "epochs"),
        ("loss", "last loss"),
        ("train_loss", "mean loss of all steps"),
    ):
        values = run.series(name)[1]
        if values:
            found[title] = number(values[-1]), ""
    for key in run.logged():
        if key.startswith("eval_") and key.endswith(("loss", "bits_per_byte")):
            found |= _best(run, key)
    for key, title in (
        ("rows_per_step", "global batch size"),
        ("processes", "processes"),
        ("device", "device"),
    ):
        if key in run.metadata:
            found[title] = str(run.metadata[key]), ""
    return found


def _best(run: Run, key: str) -> dict[str, tuple[str, str]]:
    known = [(value, step) for step, value in zip(*run.series(key), strict=True)]
    known = [(value, step) for value, step in known if math.isfinite(value)]
    if not known:
        return {}
    value, step = min(known)
    return {f"best {key}": (number(value), f"at step {step:,.0f}")}


def _setting_values(run: Run) -> dict[str, str]:
    """Return the settings, what was prepared, and the versions, each by its name."""
    found: dict[str, Any] = {}
    settings = run.metadata.get("settings")
    if isinstance(settings, dict):
        found |= {name: value for name, value in settings.items() if name not in _UNSEEN}
    prepared = run.metadata.get("prepared")
    if isinstance(prepared, dict):
        found["prepared"] = prepared.get("fingerprint", "")
    for name in ("rows_per_step", "steps", "processes", "device"):
        if name in run.metadata:
            found[name] = run.metadata[name]
    versions = run.metadata.get("versions")
    if isinstance(versions, dict):
        found |= {f"version of {name}": value for name, value in versions.items()}
    return {name: str(value) for name, value in found.items()}


def _differences(runs: Sequence[Run]) -> list[Block]:
    values = [_setting_values(run) for run in runs]
    names = dict.fromkeys(name for found in values for name in found)
    rows = [
        [name, *(found.get(name, "") for found in values)]
        for name in names
        if len({found.get(name) for found in values}) > 1
    ]
    if not rows:
        return []
    header = ["setting", *(run.name for run in runs)]
    return [
        TableBlock(
            title="Settings that differ",
            table=Table(header=header, rows=rows, words=range(1, len(header))),
        )
    ]


def _settings(runs: Sequence[Run]) -> Iterator[Block]:
    for run in runs:
        values = _setting_values(run)
        command = run.metadata.get("command")
        if values:
            yield TableBlock(
                title=run.name,
                code=command if isinstance(command, str) else "",
                table=Table(
                    header=["setting", "value"],
                    rows=[[name, v] for name, v in values.items()],
                    words=[1],
                ),
                is_open=False,
            )


def _answers(runs: Sequence[Run]) -> Iterator[SideBySide]:
    """Yield, for each question, the reference and the answers of each run, by step."""
    questions: dict[tuple[str, str], list[list[Sample]]] = {}
    for i, run in enumerate(runs):
        for sample in sorted(run.samples, key=lambda sample: sample.step):
            key = sample.name, sample.question
            questions.setdefault(key, [[] for _ in runs])[i].append(sample)
    for (name, question), found in list(questions.items())[:_MOST_QUESTIONS]:
        references = [sample.reference for samples in found for sample in samples]
        yield SideBySide(
            title=name or shorten(question, 80),
            question=shorten(question, _LONGEST),
            references=[shorten(text, _LONGEST) for text in dict.fromkeys(references) if text],
            rows=[
                Row(i % len(SERIES) + 1, [_column(sample, i, runs) for sample in samples])
                for i, samples in enumerate(found)
                if samples
            ],
        )


def _column(sample: Sample, run: int, runs: Sequence[Run]) -> Column:
    name = f"{runs[run].name}, " if len(runs) > 1 else ""
    cut = ", cut" if sample.is_cut else ""
    answer = shorten(sample.answer, _LONGEST) if sample.answer.strip() else "(blank)"
    return Column(f"{name}step {sample.step:,}{cut}", answer)
