"""Further prepared folders to evaluate on, by name."""

from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.stage import fit
from tests.conftest import ROOT
from tests.fit.helpers import changed, log_of, state_of


def test_each_has_its_values_and_the_plain_ones_stay(
    config: FitConfig, train_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(config, eval_strategy="steps", eval_steps=3)
    named = (f"same={config.data_path[0]}", f"all={train_only}")
    plain = log_of(fit(config))
    capsys.readouterr()
    out = fit(changed(config, eval_data_path=named, output_dir=str(tmp_path / "named")))
    log = log_of(out)
    evaluations = [entry for entry in log if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [3, 6]
    for entry in evaluations:
        assert entry["eval_same_loss"] == entry["eval_loss"]
        assert entry["eval_same_bits_per_byte"] == entry["eval_bits_per_byte"]
        assert entry["eval_all_loss"] != entry["eval_loss"]
    assert f"eval all loss {evaluations[-1]['eval_all_loss']:.4g}" in capsys.readouterr().err
    without = [
        {
            name: value
            for name, value in entry.items()
            if "_all_" not in name and "_same_" not in name
        }
        for entry in log
    ]
    assert without == plain, "the steps, and what is known of them, are the same"


def test_they_are_enough_but_say_nothing_of_the_best(
    config: FitConfig, train_only: Path, prepared: Path
) -> None:
    config = changed(
        config,
        data_path=(str(train_only),),
        eval_data_path=(f"other={prepared}",),
        eval_strategy=None,
    )
    with pytest.raises(ConfigError, match="no evaluation to compare"):
        fit(changed(config, early_stopping_patience=1))
    log = state_of(fit(config))["log_history"]
    assert [e["step"] for e in log if "eval_other_loss" in e] == [6]
    assert not any("eval_loss" in entry for entry in log)


def test_one_of_another_tokenizer_is_refused(config: FitConfig) -> None:
    other = ROOT / "tests" / "golden" / "prepared"
    with pytest.raises(ConfigError, match="another tokenizer") as caught:
        fit(changed(config, eval_data_path=(f"other={other}",)))
    assert caught.value.where == f"--eval-data-path {other}"
