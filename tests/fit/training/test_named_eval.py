"""Further prepared folders to evaluate on, by name."""

from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.data.prepared import open_data
from pipeline.fit.stage import fit
from pipeline.tokenizer import TextTokenizer
from tests.conftest import ROOT
from tests.fit.helpers import changed, log_of, make_rows, state_of, write_prepared


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
    assert f"eval_all_loss {evaluations[-1]['eval_all_loss']:.4g}" in capsys.readouterr().err
    without = [
        {
            name: value
            for name, value in entry.items()
            if "_all_" not in name and "_same_" not in name
        }
        for entry in log
    ]
    assert without == plain, "the steps, and what is known of them, are the same"


def test_a_folder_may_hold_a_split_eval_alone(
    config: FitConfig, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    held = write_prepared(tmp_path / "held", tokenizer, {"eval": make_rows(tokenizer, 3, 5)})
    data = open_data(changed(config, eval_data_path=(f"held={held}",)))
    assert len(data.named_eval["held"]) == 3


def test_they_are_enough_but_say_nothing_of_the_best(
    config: FitConfig, train_only: Path, prepared: Path
) -> None:
    config = changed(
        config,
        data_path=(str(train_only),),
        eval_data_path=(f"other={prepared}",),
        eval_strategy=None,
    )
    with pytest.raises(ConfigError, match="no evaluation to find the best"):
        fit(changed(config, early_stopping_patience=1))
    log = state_of(fit(config))["log_history"]
    assert [e["step"] for e in log if "eval_other_loss" in e] == [6]
    assert not any("eval_loss" in entry for entry in log)


def test_one_of_them_may_say_which_model_is_best(
    config: FitConfig, train_only: Path, prepared: Path, tmp_path: Path
) -> None:
    config = changed(
        config,
        data_path=(str(train_only),),
        eval_data_path=(f"other={prepared}",),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="other_loss",
    )
    state = state_of(fit(config))
    losses = {
        e["step"]: e["eval_other_loss"] for e in state["log_history"] if "eval_other_loss" in e
    }
    best = min(losses, key=losses.__getitem__)
    assert len(set(losses.values())) == 3
    assert state["best_metric"] == losses[best]
    assert state["best_model_checkpoint"].endswith(f"checkpoint-{best}")
    same = changed(config, metric_for_best_model="eval_other_loss", output_dir=str(tmp_path / "o"))
    assert state_of(fit(same))["best_metric"] == losses[best]


@pytest.mark.parametrize("metric", ["othr_loss", "other", "rouge", "eval_runtime"])
def test_a_metric_that_nobody_computes_is_refused(config: FitConfig, metric: str) -> None:
    with pytest.raises(ConfigError, match="out of range") as caught:
        changed(config, eval_data_path=("other=x",), metric_for_best_model=metric)
    assert caught.value.do == "give loss, bits_per_byte, other_loss, other_bits_per_byte"


def test_one_of_another_tokenizer_is_refused(config: FitConfig) -> None:
    other = ROOT / "tests" / "golden" / "prepared"
    with pytest.raises(ConfigError, match="differ in tokenizer") as caught:
        fit(changed(config, eval_data_path=(f"other={other}",)))
    assert caught.value.where == f"--eval-data-path {other}"
