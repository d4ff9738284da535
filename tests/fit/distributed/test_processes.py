"""Two processes on gloo are the same run as one."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.fit.stage import fit
from scripts.ranks import run_in
from tests.fit.helpers import changed, log_of, state_of, weights_of


def torchrun(
    config: FitConfig,
    processes: int,
    *flags: str,
    program: tuple[str, ...] = ("-m", "pipeline", "fit"),
) -> str:
    """Run ``fit`` in several processes; return what they printed on stderr."""
    names = (
        "data_path",
        "model_name_or_path",
        "output_dir",
        "max_steps",
        "learning_rate",
        "per_device_train_batch_size",
        "train_batch_size",
        "logging_steps",
    )
    values = {name: getattr(config, name) for name in names}
    given = [
        f"--{name.replace('_', '-')}={value}"
        for name, some in values.items()
        for value in (some if isinstance(some, tuple) else (some,))
        if value is not None
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        *program,
        *given,
        *flags,
    ]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_steps_of_two_processes_give_the_losses_of_one(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    config = changed(
        config, model_name_or_path=str(still), train_batch_size=4, max_steps=2, learning_rate=1e-3
    )
    one, two = fit(config), tmp_path / "two"
    run_in(2, fit, changed(config, output_dir=str(two)), folder=tmp_path / "said")
    for first, second in zip(log_of(one), log_of(two), strict=True):
        assert second == pytest.approx(first, rel=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    # Nine rows a step in shares of at most two: twenty rows leave a last step of two.
    config = changed(
        config,
        model_name_or_path=str(still),
        train_batch_size=9,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
    )
    one = fit(changed(config, eval_strategy=None))
    two = tmp_path / "two"
    said = torchrun(changed(config, output_dir=str(two)), 2, "--save-steps", "3")
    assert "FutureWarning" not in said
    assert "kernels" not in said  # which bitsandbytes can do without
    assert said.count("global batch size 9") == 1
    assert said.count("step 6/6: loss") == 1
    for first, second in zip(log_of(one), log_of(two), strict=True):
        assert second == pytest.approx(first, rel=1e-4)
    for name, tensor in weights_of(one).items():
        difference = (weights_of(two)[name] - tensor).abs().max()
        assert difference < 1e-3, name
    assert sorted(path.name for path in two.glob("checkpoint-3/rng*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]


@pytest.mark.slow
def test_a_step_of_fewer_rows_than_processes(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    config = changed(
        config, model_name_or_path=str(still), train_batch_size=1, max_steps=3, learning_rate=1e-3
    )
    one = fit(config)
    two = tmp_path / "two"
    torchrun(changed(config, output_dir=str(two)), 2, "--save-strategy=no", "--eval-strategy=no")
    for first, second in zip(log_of(one), log_of(two), strict=True):
        assert second == pytest.approx(first, rel=1e-4)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_to_the_bit_and_in_one_too(
    config: FitConfig, tiny: Path, tmp_path: Path
) -> None:
    import shutil

    config = changed(config, model_name_or_path=str(tiny), train_batch_size=4)
    two = tmp_path / "two"
    flags = ("--save-steps=3", "--eval-strategy=no")
    torchrun(changed(config, output_dir=str(two)), 2, *flags)
    log, weights = log_of(two), weights_of(two)
    shutil.rmtree(two / "checkpoint-6")
    (two / "trainer_state.json").unlink()
    other = shutil.copytree(two, tmp_path / "other")
    assert "resuming from checkpoint-3" in torchrun(changed(config, output_dir=str(two)), 2, *flags)
    assert log_of(two) == log
    assert all((weights_of(two)[name] == weights[name]).all() for name in weights)
    fit(changed(config, output_dir=str(other)))
    assert state_of(other)["global_step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optim", "rel", "weights"),
    [
        ("adamw_torch", 1e-5, 1e-6),
        ("adamw_8bit", 1e-5, 1e-6),
        ("muon", 1e-4, 1e-4),  # it rounds to bfloat16 what it makes its update of
    ],
)
def test_a_run_of_one_process_goes_on_in_two(
    config: FitConfig, still: Path, tmp_path: Path, optim: str, rel: float, weights: float
) -> None:
    import shutil

    changes = {"optim": optim, "train_batch_size": 4, "learning_rate": 1e-3}
    one = fit(
        changed(
            config, model_name_or_path=str(still), save_strategy="steps", save_steps=3, **changes
        )
    )
    two = shutil.copytree(one, tmp_path / "two")
    shutil.rmtree(two / "checkpoint-6")
    (two / "trainer_state.json").unlink()
    again = changed(config, model_name_or_path=str(still), output_dir=str(two), **changes)
    said = torchrun(again, 2, f"--optim={optim}", "--save-steps=3", "--eval-strategy=no")
    assert "started on 1 process, resumed on 2" in said
    for first, second in zip(log_of(one), log_of(two), strict=True):
        assert second == pytest.approx(first, rel=rel)
    for name, tensor in weights_of(one).items():
        assert (weights_of(two)[name] - tensor).abs().max() < weights, name
