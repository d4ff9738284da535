"""A dry run tells of the run that would come, from lengths and the model's config alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.prepared import open_data
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.estimate import dry_run
from pipeline.fit.flops import ModelFlops
from pipeline.fit.schedule import plan_run
from pipeline.fit.stage import fit
from tests.fit.helpers import changed
from tests.fit.training.test_step import load


def table(config: FitConfig, processes: int = 1, peak: float | None = None) -> dict[str, str]:
    """Return the table's lines by their names, without runs of spaces."""
    lines = dry_run.dry_run(config, processes, peak)
    return {line[:28].strip(): " ".join(line[28:].split()) for line in lines}


def test_the_command_prints_a_table_and_writes_nothing(
    config: FitConfig, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(config.model_name_or_path, tmp_path / "model")
    (model / "model.safetensors").unlink()
    before = sorted(path for folder in (prepared, tmp_path) for path in folder.rglob("*"))
    args = {"data-path": prepared, "model-name-or-path": model, "output-dir": tmp_path / "out"}
    code = run(["fit", "--dry-run", *(f"--{name}={value}" for name, value in args.items())])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert [line[:28].strip() for line in out.splitlines()] == [
        "examples",
        "global batch size",
        "steps",
        "encoder tokens",
        "decoder tokens",
        "padding",
        "micro-batches",
        "largest micro-batch",
        "parameters",
        "gradients",
        "optimizer",
        "activations",
        "loss",
        "memory",
        "compute",
        "matmul peak",
        "time",
    ]
    assert sorted(path for folder in (prepared, tmp_path) for path in folder.rglob("*")) == before


def test_muons_update_has_a_line(config: FitConfig) -> None:
    assert "update" not in table(config)
    assert table(changed(config, optim="muon"))["update"].endswith("activations and loss are freed")


def test_the_figures_are_the_runs(config: FitConfig, prepared: Path) -> None:
    config = changed(config, max_steps=-1, num_train_epochs=2, train_batch_size=8)
    found, dataset = table(config), SupervisedDataset(prepared)
    encoder, decoder = dataset.lengths
    assert found["examples"].startswith("20 for training; 5 for")
    assert found["global batch size"].startswith("8 from --train-batch-size")
    assert found["steps"] == "6 2 epochs of 3"
    assert found["encoder tokens"].startswith(f"{encoder.sum():,} per epoch")
    assert found["decoder tokens"] == f"{decoder.sum():,}"
    model = load(Path(config.model_name_or_path))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert found["parameters"] == found["gradients"] == f"{weights / 2**10:.1f} KiB"
    flops = ModelFlops.of(model.config)
    useful = 3 * 2 * flops(encoder, decoder).sum()
    assert found["compute"].endswith("at 100 TFLOP/s on one device")
    assert float(found["compute"].split()[0]) == pytest.approx(useful, rel=0.01)


def test_an_epoch_of_a_mixture_has_its_share_of_the_rows(config: FitConfig, prepared: Path) -> None:
    config = changed(config, data_path=(f"{prepared}=0.3",), max_steps=-1, train_batch_size=2)
    found, mixture = table(config), open_data(config).train
    rows = mixture.epoch_rows(config.seed, 0)
    assert len(rows) == 6
    assert found["examples"].startswith("6 for training")
    assert found["steps"] == "9 3 epochs of 3"
    assert found["encoder tokens"].startswith(f"{mixture.lengths[0][rows].sum():,} per epoch")


def test_padding_and_the_largest_micro_batch_are_those_of_the_cut(
    config: FitConfig, prepared: Path
) -> None:
    """So small a model and window have steps of one micro-batch: worked out by hand here."""
    config = changed(config, max_steps=5, group_by_length=False)
    dataset = SupervisedDataset(prepared)
    encoder, decoder = dataset.lengths
    plan = BatchSampler(
        encoder, decoder, global_batch_size=4, seed=config.seed, group_by_length=False
    )
    steps = [plan.rows_of(step) for step in range(5)]
    shapes = [(4, int(encoder[rows].max()), int(decoder[rows].max())) for rows in steps]
    flops = ModelFlops.of(load(Path(config.model_name_or_path)).config)
    padded = sum(rows * flops(source, target) for rows, source, target in shapes)
    found = table(config)
    share = 1 - flops(encoder, decoder).sum() / padded
    assert found["padding"] == f"{share:.1%} of the operations, --group-by-length off"
    assert found["micro-batches"] == "1.00 per step and process"
    rows, source, target = max(shapes, key=lambda shape: shape[1] + shape[2])
    assert found["largest micro-batch"].startswith(f"{rows} x {source} x {target} ")


def test_the_launchers_processes_count(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = table(config, processes=2)
    assert found["global batch size"] == "8 = 4 per device x 2 processes x 1 accumulation step"
    assert "the slowest process" in found["imbalance"]
    assert "imbalance" not in table(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    fit(changed(config, dry_run=True))
    assert "= 4 per device x 2 processes x 1 accumulation step" in capsys.readouterr().out


def test_only_the_first_process_prints(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert fit(changed(config, dry_run=True)) == Path(config.output_dir)
    assert capsys.readouterr().out == ""
    assert not Path(config.output_dir).exists()


def test_what_is_wrong_is_the_one_line_of_fit(config: FitConfig) -> None:
    with pytest.raises(ConfigError, match="prepared with another length"):
        fit(changed(config, dry_run=True, model_max_length=128))


@pytest.mark.parametrize(
    ("rows", "changes", "count", "last"),
    [
        (10**6, {"per_device_train_batch_size": 8}, 8192, 124_999),
        (10**6, {"per_device_train_batch_size": 8, "max_steps": 100}, 100, 99),
        (10**6, {"train_batch_size": 10_000}, 32, 99),
        (100, {"train_batch_size": 1000}, 1, 0),
    ],
)
def test_of_very_many_rows_some_steps_are_looked_at(
    config: FitConfig, rows: int, changes: dict[str, Any], count: int, last: int
) -> None:
    config = changed(config, **{"max_steps": -1} | changes)
    plan = plan_run(config.steps, num_rows=rows, eval_rows=0, processes=1)
    steps = dry_run.steps_looked_at(plan)
    assert len(steps) == len(set(steps)) == count
    assert (steps[0], steps[-1]) == (0, last)


def test_time_is_that_of_the_slowest_process_at_a_share_of_the_peak(
    config: FitConfig,
) -> None:
    config = changed(config, max_steps=5, group_by_length=False)
    flops = ModelFlops.of(load(Path(config.model_name_or_path)).config)
    padding = 1 - float(table(config)["padding"].split("%")[0]) / 100
    encoder, decoder = SupervisedDataset(config.data_path[0]).lengths
    padded = float(flops(encoder, decoder).sum()) / padding
    # Three passes of an epoch at two fifths of an epoch's operations a second.
    assert table(config, peak=padded)["time"].startswith("8 s if 40% of that peak is reached")
    recomputed = table(changed(config, gradient_checkpointing=True), peak=padded)
    assert recomputed["time"].startswith("10 s if 40% of that peak is reached")
