"""The trained folder: weights in several files, and the model card."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSeq2SeqLM

from pipeline.cli import run
from pipeline.config import FitConfig
from pipeline.fit.checkpoint.model_card import command, model_card
from pipeline.fit.checkpoint.train_state import RunState
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.stage import fit
from tests.fit.helpers import changed, fit_with, log_of, state_of, weights_of


def test_large_weights_are_several_files(
    config: FitConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = changed(config, save_strategy="steps", save_steps=3)
    one = weights_of(fit(config))
    out = Path(config.output_dir)
    (out / "trainer_state.json").unlink()
    small = {"max_shard_bytes": 40_000}
    fit_with(config, **small)  # over what is there
    several = sorted(path.name for path in out.glob("model*.safetensors"))
    assert len(several) > 1
    assert "model.safetensors" not in several
    index = json.loads((out / "model.safetensors.index.json").read_text("utf-8"))
    assert sorted(set(index["weight_map"].values())) == several
    with quiet_transformers():
        model, info = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in one.items())
    capsys.readouterr()
    fit(config)
    assert "nothing to train" in capsys.readouterr().err
    (out / several[1]).unlink()
    fit_with(config, **small)
    assert sorted(path.name for path in out.glob("model*.safetensors")) == several
    # And a checkpoint in several files resumes.
    parts = changed(config, output_dir=str(tmp_path / "parts"))
    fit_with(parts, **small)
    again = log_of(tmp_path / "parts")
    assert len(list((tmp_path / "parts" / "checkpoint-3").glob("model-*.safetensors"))) > 1
    for name in ("checkpoint-6/checkpoint.json", "trainer_state.json"):
        (tmp_path / "parts" / name).unlink()
    fit_with(parts, **small)
    assert log_of(tmp_path / "parts") == again


def test_the_model_card_says_what_the_model_is_made_of(config: FitConfig, tiny: Path) -> None:
    out = fit(changed(config, eval_strategy=None))
    text = (out / "README.md").read_text("utf-8")
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # a folder is no name on the hub
    assert card.data.tags == ["duet-t5", "conversational"]
    for entry in state_of(out)["log_history"][-2:]:
        for name in {"train_loss", "eval_loss", "eval_bits_per_byte"} & entry.keys():
            assert f"| {entry[name]:.4f} |" in text
    assert "| fingerprint | `both` |" in text
    assert "| train rows | 20 |" in text
    assert "| pairs | 25 |" in text
    assert f"| torch | {torch.__version__} |" in text
    assert "6 steps of at most 4 examples, " in text
    assert "on 1 process (cpu (" in text
    assert " 1 threads" not in text
    assert "the logged losses in `trainer_state.json`" in text


def test_the_command_of_a_run_gives_it_again_and_is_on_the_card_without_places(
    config: FitConfig, tmp_path: Path
) -> None:
    out = fit(config)
    log, other = log_of(out), tmp_path / "other"
    words = shlex.split(command(changed(config, output_dir=str(other))))
    assert json.loads((out / "run.json").read_text("utf-8"))["command"] == command(config)
    card = (out / "README.md").read_text("utf-8")
    assert str(tmp_path) not in card
    assert f" --data-path {Path(config.data_path[0]).name} " in card
    assert " --logging-steps 1 " in card  # and not 1.0
    assert run(words[1:]) == 0
    assert log_of(other) == log


def test_a_model_of_the_hub_is_named_as_there(config: FitConfig) -> None:
    out = fit(config)
    facts = json.loads((out / "run.json").read_text("utf-8"))
    facts["settings"]["model_name_or_path"] = "org/some-t5"
    card = model_card(facts, RunState())
    assert ModelCard(card).data.base_model == "org/some-t5"


def test_a_readme_of_another_stays(config: FitConfig, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(config.output_dir)
    out.mkdir()
    (out / "README.md").write_text("mine")
    fit(config)
    assert (out / "README.md").read_text() == "mine"
    assert "no model card is written" in capsys.readouterr().err


def test_a_card_that_cannot_be_written_does_not_cost_the_model(
    config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "README.md").mkdir(parents=True)
    fit(changed(config, output_dir=str(tmp_path / "out"), max_steps=1))
    assert "no model card is written" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").is_file()
