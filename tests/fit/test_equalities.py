"""A run is the same on one, two and four processes, stopped and gone on with on others.

``scripts/equalities.py`` has all the runs that are compared, and prints by how much they differ.
"""

from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.fit.stage import fit
from scripts.equalities import Group, compare, differences, groups, sit
from tests.fit.helpers import changed


@pytest.fixture
def run(config: FitConfig, still: Path) -> FitConfig:
    """Six steps, no dropout; 13 rows in steps of 6: the third is of one row."""
    return changed(
        config,
        model_name_or_path=str(still),
        num_data=13,
        train_batch_size=6,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        eval_strategy=None,
        eval_steps=3,
    )


@pytest.mark.slow
def test_a_run_begun_on_two_processes_goes_on_on_four_as_on_one(
    run: FitConfig, tmp_path: Path
) -> None:
    one, said = fit(run), tmp_path / "said"
    parts = sit(changed(run, output_dir=str(tmp_path / "parts")), ((2, 4), (4, 0)), said)
    found = differences(one, parts)
    assert max(found.values()) < 1e-4, found
    notes = [
        [line for line in path.read_text("utf-8").splitlines() if "started on" in line]
        for path in sorted(said.iterdir())
    ]
    assert notes[1:] == [[], [], []]
    assert notes[0] == [
        "note: started on 2 processes, resumed on 4: the global batch size stays; "
        "micro-batches and dropout differ"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("group", groups(), ids=lambda group: group.name.replace(" ", "-"))
def test_the_whole_table(group: Group, tmp_path: Path) -> None:
    for label, found in compare(group, tmp_path):
        assert max(found.values()) <= group.limit, (label, found)
