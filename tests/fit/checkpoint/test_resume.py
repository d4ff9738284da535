"""A run that was stopped resumes as if it had not been; another run's checkpoint is refused."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import FitConfig, FitOptions
from pipeline.errors import CheckpointError, DuetError, ModelError, OutputError
from pipeline.fit.checkpoint import format as checkpoints
from pipeline.fit.checkpoint.format import delete_oldest, find_checkpoint
from pipeline.fit.checkpoint.output import delete_leftovers
from pipeline.fit.checkpoint.train_state import restore_rng_state, rng_state
from pipeline.fit.stage import fit
from pipeline.store.atomic import locked_folder
from pipeline.tokenizer import TOKENIZER_FILES
from tests.fit.helpers import (
    Hooks,
    assert_same_weights,
    changed,
    log_of,
    state_of,
    weights_of,
    with_config,
)


class StoppedError(Exception):
    """Stands for the power failing."""


@pytest.fixture
def run(config: FitConfig) -> FitConfig:
    """Six steps over more than an epoch, with dropout; an entry every four, saved at three."""
    return changed(
        config,
        logging_steps=4,
        save_strategy="steps",
        save_steps=3,
        eval_steps=2,
        eval_strategy="steps",
        lr_scheduler_type="cosine",
        warmup_steps=2,
        weight_decay=0.1,
    )


def fit_and_stop(config: FitConfig, saves: int = 1, run: Callable[..., Path] = fit) -> None:
    """Run until so many checkpoints are complete."""
    left = [saves]

    def stop(step: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(config, callback=Hooks(save=stop))


@pytest.mark.parametrize(
    "optim",
    [
        "adamw_torch",
        "muon",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("adamw_torch_fused", "adamw_8bit", "adafactor")
        ),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    run: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    whole = changed(run, output_dir=str(tmp_path / "whole"), optim=optim)
    parts = changed(run, output_dir=str(tmp_path / "parts"), optim=optim)
    fit(whole)
    fit_and_stop(parts)
    assert not (tmp_path / "parts" / "trainer_state.json").exists()
    torch.manual_seed(12345)  # whatever happens in between
    fit(parts)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    log = log_of(tmp_path / "whole")
    assert log == log_of(tmp_path / "parts")
    assert [entry["step"] for entry in log if "loss" in entry] == [4, 6]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [2, 4, 6]
    manifest = json.loads((tmp_path / "parts" / "checkpoint-3" / "checkpoint.json").read_text())
    before = manifest["progress"]["seconds"]
    assert 0 < before < state_of(tmp_path / "parts")["log_history"][-1]["train_runtime"]


def test_dropout_is_on_and_seeded(run: FitConfig, still: Path, tmp_path: Path) -> None:
    runs = {
        "one": {},
        "same": {},
        "seed": {"seed": 7},
        "still": {"model_name_or_path": str(still)},
    }
    for name, changes in runs.items():
        fit(changed(run, output_dir=str(tmp_path / name), save_strategy="no", **changes))
    assert_same_weights(tmp_path / "one", tmp_path / "same")
    for name in ("seed", "still"):
        assert log_of(tmp_path / name) != log_of(tmp_path / "one")


def test_a_finished_run_started_again_does_nothing(
    finished: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(finished.output_dir)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert fit(finished) == out
    assert "nothing to train" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("lost", ["model.safetensors", "trainer_state.json", "run.json"])
def test_a_finished_run_without_its_trained_folder_writes_it_again(
    finished: FitConfig, tmp_path: Path, lost: str
) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    log, weights = log_of(out), weights_of(out)
    (out / lost).unlink()
    fit(changed(finished, output_dir=str(out)))
    assert log_of(out) == log
    again = weights_of(out)
    assert all(torch.equal(again[name], weights[name]) for name in weights)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"train_batch_size": 5}, "global batch size"),
    ({"per_device_train_batch_size": 2}, "global batch size"),
    ({"gradient_accumulation_steps": 2}, "global batch size"),
    ({"max_steps": 7}, "total steps"),
    ({"max_steps": -1, "num_train_epochs": 2.0}, "total steps"),
    ({"num_data": 12}, "training examples"),
    ({"seed": 1}, "--seed"),
    ({"group_by_length": False}, "--group-by-length"),
    ({"learning_rate": 2e-2}, "--learning-rate"),
    ({"lr_scheduler_type": "linear"}, "--lr-scheduler-type"),
    ({"warmup_steps": 3}, "warmup steps"),
    ({"warmup_steps": 0, "warmup_ratio": 0.5}, "warmup steps"),
    ({"weight_decay": 0.0}, "--weight-decay"),
    ({"max_grad_norm": 2.0}, "--max-grad-norm"),
    ({"optim": "adafactor"}, "--optim"),
    ({"optim": "muon"}, "--optim"),
    ({"bf16": True}, "--bf16"),
    ({"from_scratch": True}, "--from-scratch"),
    ({"adam_beta1": 0.8}, "--adam-beta1"),
    ({"adam_beta2": 0.9}, "--adam-beta2"),
    ({"adam_epsilon": 1e-6}, "--adam-epsilon"),
    ({"dropout": 0.2}, "--dropout"),
    ({"label_smoothing_factor": 0.1}, "--label-smoothing-factor"),
    ({"lr_scheduler_kwargs": "num_cycles=2"}, "--lr-scheduler-kwargs"),
]
OFFERS = {
    "global batch size": "give --train-batch-size 4, --resume-anyway to resume with this value, ",
    "total steps": "give --max-steps 6, --resume-anyway to resume with this value, ",
    "warmup steps": "give --warmup-steps 2, --resume-anyway to resume with this value, ",
}
OF_AN_ADAPTER = {"lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "quantize"}
"""Refused, too: see ``test_lora.py``."""
NO_OTHER_RUN = {
    *("per_device_eval_batch_size", "auto_batch_size", "tf32", "gradient_checkpointing"),
    *("torch_compile", "logging_steps", "eval_strategy", "eval_steps", "save_strategy"),
    *(
        "save_steps",
        "save_total_limit",
        "save_only_model",
        "resume_anyway",
        "report_to",
        "run_name",
        "cache_dir",
    ),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("early_stopping_patience", "early_stopping_threshold", "eval_samples", "num_processes"),
    *("fp16", "fsdp", "fsdp_transformer_layer_cls_to_wrap"),
}
"""What may change: the steps are the same, but for rounding."""


def test_of_each_option_it_is_known_whether_it_changes_the_run() -> None:
    refused = {name for changes, _ in REFUSALS for name in changes}
    names = {field.name for field in dataclasses.fields(FitOptions)}
    assert names == refused | OF_AN_ADAPTER | NO_OTHER_RUN


@pytest.fixture(scope="module")
def finished(tiny: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> FitConfig:
    config = FitConfig(
        data_path=str(prepared),
        model_name_or_path=str(tiny),
        max_steps=6,
        eval_strategy="no",
        output_dir=str(tmp_path_factory.mktemp("finished") / "out"),
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        weight_decay=0.1,
    )
    fit(config)
    return config


@pytest.mark.parametrize(("changes", "name"), REFUSALS)
def test_other_settings_are_refused_by_name(
    finished: FitConfig, changes: dict[str, Any], name: str
) -> None:
    with pytest.raises(CheckpointError, match="other settings") as caught:
        fit(changed(finished, **changes))
    assert caught.value.where == name
    assert "checkpoint-6 was made with" in caught.value.got
    assert caught.value.do.startswith(OFFERS.get(name, "give the value it was made with, "))
    assert caught.value.do.endswith(" or another --output-dir")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"learning_rate": 2e-2, "lr_scheduler_type": "linear"},
            "--learning-rate 0.02 (was 0.01), --lr-scheduler-type linear (was cosine)",
        ),
        ({"weight_decay": 0.3, "seed": 7}, "--seed 7 (was 42), --weight-decay 0.3 (was 0.1)"),
        (
            {"max_steps": 9, "optim": "adamw_torch_fused"},
            "total steps 9 (was 6), --optim adamw_torch_fused (was adamw_torch)",
        ),
        ({"train_batch_size": 5}, "global batch size 5 (was 4)"),
    ],
)
def test_a_run_goes_on_with_other_settings_where_it_is_told_to(
    finished: FitConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    finished = changed(finished, logging_steps=1, resume_anyway=True)
    new = log_of(fit(changed(finished, output_dir=str(tmp_path / "new"), **changes)))
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    shutil.rmtree(out / "checkpoint-6")
    capsys.readouterr()
    fit(changed(finished, output_dir=str(out), **changes))
    said = capsys.readouterr().err
    assert f"note: --resume-anyway: checkpoint-4 resumes with {words}\n" in said
    # From here on the rates are those of a run with the new settings, from its first step on.
    rates = [(entry["step"], entry["learning_rate"]) for entry in new if "loss" in entry]
    went_on = [entry for entry in log_of(out) if "loss" in entry and entry["step"] > 4]
    assert [(entry["step"], entry["learning_rate"]) for entry in went_on] == rates[4:]
    last = sorted(out.glob("checkpoint-*"))[-1]
    saved = torch.load(last / "optimizer.pt", weights_only=True)
    assert {int(state["step"]) for state in saved["state"].values()} == {len(rates)}
    for group, decay in zip(
        saved["param_groups"], (changes.get("weight_decay", 0.1), 0.0), strict=True
    ):
        assert group["weight_decay"] == decay
    fit(changed(finished, output_dir=str(out), **changes | {"resume_anyway": False}))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_data": 12}, "training examples"),
        ({"optim": "adafactor"}, "--optim"),
        ({"optim": "muon"}, "--optim"),
        ({"max_steps": 5, "learning_rate": 1.0}, "total steps"),
    ],
)
def test_what_no_run_can_go_on_with(
    finished: FitConfig, changes: dict[str, Any], name: str
) -> None:
    with pytest.raises(CheckpointError, match="other settings") as caught:
        fit(changed(finished, resume_anyway=True, **changes))
    assert caught.value.where == name
    assert caught.value.do.startswith("give ")
    assert caught.value.do.endswith(", or another --output-dir")
    assert "--resume-anyway" not in caught.value.do


def test_no_run_goes_on_with_another_model_or_vocabulary(
    finished: FitConfig, tiny: Path, tmp_path: Path
) -> None:
    other = with_config(tiny, tmp_path / "other", num_layers=3)
    with pytest.raises(CheckpointError) as caught:
        fit(changed(finished, model_name_or_path=str(other), resume_anyway=True))
    assert caught.value.where == "--model-name-or-path (config)"
    data = shutil.copytree(finished.data_path[0], tmp_path / "data")
    spec = json.loads((data / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    spec["model"]["vocab"][99][0] += "x"
    (data / "tokenizer" / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    with pytest.raises(ModelError, match="the data were prepared for another model"):
        fit(changed(finished, data_path=str(data), resume_anyway=True))
    bare = shutil.copytree(tiny, tmp_path / "bare")  # which tells nothing of its vocabulary
    for name in TOKENIZER_FILES:
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError) as caught:
        fit(
            changed(finished, data_path=str(data), model_name_or_path=str(bare), resume_anyway=True)
        )
    assert caught.value.where == "vocabulary"


def test_other_data_of_the_same_length_are_gone_on_with(
    finished: FitConfig, train_only: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    shutil.rmtree(out / "checkpoint-6")
    config = changed(finished, output_dir=str(out), data_path=str(train_only))
    with pytest.raises(CheckpointError, match="other settings") as caught:
        fit(config)
    assert "--resume-anyway to resume" in caught.value.do
    fit(changed(config, resume_anyway=True))
    assert state_of(out)["global_step"] == 6


def test_other_data_are_refused(finished: FitConfig, train_only: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        fit(changed(finished, data_path=str(train_only)))
    assert "--data-path" in caught.value.where


def test_another_model_is_refused_but_not_another_path(
    finished: FitConfig, tiny: Path, tmp_path: Path
) -> None:
    other = with_config(tiny, tmp_path / "other", num_layers=3)
    with pytest.raises(CheckpointError) as caught:
        fit(changed(finished, model_name_or_path=str(other)))
    assert caught.value.where == "--model-name-or-path (config)"
    same = with_config(tiny, tmp_path / "same", vocab_size=999, tie_word_embeddings=None)
    fit(changed(finished, model_name_or_path=str(same)))


def test_a_run_in_the_models_own_folder_goes_on(
    run: FitConfig, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(changed(run, output_dir=str(tmp_path / "whole")))
    folder = shutil.copytree(tiny, tmp_path / "model")
    run = changed(run, model_name_or_path=str(folder), output_dir=str(folder))
    fit_and_stop(run)
    fit(run)
    assert_same_weights(whole, folder)
    (folder / "run.json").unlink()
    fit(run)  # config.json is the run's own now
    assert_same_weights(whole, folder)


def test_settings_that_do_not_change_the_training_may_change(
    finished: FitConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir, out)
    (out / "trainer_state.json").unlink()
    fit(
        changed(
            finished,
            output_dir=str(out),
            per_device_train_batch_size=2,
            logging_steps=1,
            gradient_accumulation_steps=2,
            save_steps=5,
            gradient_checkpointing=True,
        )
    )
    assert state_of(out)["global_step"] == 6


def damage_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def take_manifest(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


def take_optimizer(folder: Path) -> None:
    (folder / "optimizer.pt").unlink()


def break_manifest(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("{", "utf-8")


def flip_a_digit(folder: Path) -> None:
    path = folder / "checkpoint.json"
    text = path.read_text("utf-8")
    place = text.index('"rows_seen": ') + len('"rows_seen": ')
    path.write_text(f"{text[:place]}{9 - int(text[place])}{text[place + 1 :]}", "utf-8")


def change_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "checkpoint.json").read_text("utf-8"))
        del values["checksum"]  # an older version's
        values["progress"] |= changes.pop("progress", {})
        (folder / "checkpoint.json").write_text(json.dumps(values | changes), "utf-8")

    return change


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        take_manifest,
        take_optimizer,
        break_manifest,
        flip_a_digit,
        change_manifest(schema_version=99),
        change_manifest(files=[]),
        change_manifest(identity=None),
        change_manifest(identity=[1]),
        change_manifest(processes="1"),
        change_manifest(progress={"tokens_seen": "7"}),
        change_manifest(progress={"seconds": None}),
        change_manifest(progress={"window": {"loss": "x"}}),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    finished: FitConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    damage(out / "checkpoint-6")
    found = find_checkpoint(out)
    assert found is not None
    assert found.folder.name == "checkpoint-4"
    assert found.state.step == 4
    message = capsys.readouterr().err
    assert "checkpoint-6 is skipped: incomplete or damaged" in message
    assert message.count("\n") == 1


def test_a_run_resumes_from_the_one_before_a_damaged_one(
    finished: FitConfig, tmp_path: Path
) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    damage_weights(out / "checkpoint-6")
    fit(changed(finished, output_dir=str(out)))
    assert_same_weights(out, Path(finished.output_dir))


def test_a_run_none_of_whose_checkpoints_can_be_used_does_not_start_anew(
    finished: FitConfig, tmp_path: Path
) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    for folder in out.glob("checkpoint-*"):
        change_manifest(schema_version=99)(folder)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(CheckpointError, match="no checkpoint can be used") as raised:
        fit(changed(finished, output_dir=str(out)))
    assert "schema" in raised.value.got
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_what_another_program_left_under_a_checkpoints_name_is_moved_aside(
    finished: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name in ("checkpoint-4", "checkpoint-4.before"):
        (out / name).mkdir(parents=True)
        (out / name / "optimizer.bin").write_text(name)
    (out / "pytorch_model.bin").write_text("weights")
    fit(changed(finished, output_dir=str(out)))
    assert_same_weights(out, Path(finished.output_dir))
    assert (out / "checkpoint-4.before2" / "optimizer.bin").read_text() == "checkpoint-4"
    assert (out / "checkpoint-4.before" / "optimizer.bin").read_text() == "checkpoint-4.before"
    said = capsys.readouterr().err
    assert "renamed to checkpoint-4.before2" in said
    assert "deleted: pytorch_model.bin" in said


def overwrite(folder: Path, name: str, content: bytes) -> None:
    """Put other content into a file, and its size and hash into the manifest."""
    (folder / name).write_bytes(content)
    values = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    del values["checksum"]
    digest = hashlib.sha256(content).hexdigest()
    values["files"][name] = {"bytes": len(content), "sha256": digest}
    (folder / "checkpoint.json").write_text(json.dumps(values), "utf-8")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_file_with_one_other_byte_is_damage(
    finished: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    file = out / "checkpoint-6" / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    found = find_checkpoint(out)
    assert found is not None
    assert found.folder.name == "checkpoint-4"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is skipped" in said


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_content_that_cannot_be_read_is_named(
    finished: FitConfig, tmp_path: Path, name: str
) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    (out / "trainer_state.json").unlink()
    overwrite(out / "checkpoint-6", name, b"\1" * 99)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        fit(changed(finished, output_dir=str(out)))
    assert caught.value.where.endswith(name)
    assert caught.value.got == "content that cannot be read (RuntimeError)"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("content", [{"python": 1, "param_groups": 2}, None])
def test_content_of_a_wrong_shape_is_damage_too(
    finished: FitConfig, tmp_path: Path, name: str, content: Any
) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    (out / "trainer_state.json").unlink()
    torch.save(content, tmp_path / "content")
    overwrite(out / "checkpoint-6", name, (tmp_path / "content").read_bytes())
    with pytest.raises(CheckpointError, match="damaged") as caught:
        fit(changed(finished, output_dir=str(out)))
    assert caught.value.where.endswith("checkpoint-6")


def test_weights_that_cannot_be_read_are_named(finished: FitConfig, tmp_path: Path) -> None:
    out = shutil.copytree(finished.output_dir, tmp_path / "out")
    (out / "trainer_state.json").unlink()
    overwrite(out / "checkpoint-6", "model.safetensors", b"\xff" * 9999)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        fit(changed(finished, output_dir=str(out)))
    assert caught.value.where.endswith("checkpoint-6")


def test_checkpoints_are_found_by_number_not_by_name(finished: FitConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for old, new in ((2, 9), (4, 10)):
        folder = shutil.copytree(
            Path(finished.output_dir) / f"checkpoint-{old}", out / f"checkpoint-{new}"
        )
        values = json.loads((folder / "checkpoint.json").read_text("utf-8"))
        values["progress"]["step"] = new
        del values["checksum"]
        (folder / "checkpoint.json").write_text(json.dumps(values), "utf-8")
    (out / "checkpoint-best").mkdir()
    found = find_checkpoint(out)
    assert found is not None
    assert found.state.step == 10
    assert find_checkpoint(tmp_path / "none") is None


def test_the_limit_keeps_the_newest(run: FitConfig) -> None:
    out = fit(changed(run, save_steps=1, save_total_limit=2))
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-5",
        "checkpoint-6",
    ]


def test_the_limit_leaves_what_another_program_made(tmp_path: Path) -> None:
    for step, complete in ((1, True), (2, False), (3, True), (9, True)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "checkpoint.json").write_text("{}", "utf-8")
    delete_oldest(tmp_path, 3, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-9",
    ]
    delete_oldest(tmp_path, 9, None)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_that_was_being_deleted_is_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "checkpoint.json").write_text("{}", "utf-8")

    def stop(folder: Path) -> None:
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(checkpoints.shutil, "rmtree", stop)
        delete_oldest(tmp_path, 2, 1)
    assert [path.name[:13] for path in tmp_path.iterdir()] == [".checkpoint-1"]
    for name in ("old", "new"):
        (tmp_path / f".{name}.jsonl.1-2.tmp").write_text("half", "utf-8")
    os.utime(tmp_path / ".old.jsonl.1-2.tmp", (0, 0))
    delete_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".new.jsonl.1-2.tmp"]  # another writes it


def test_two_runs_do_not_write_into_one_folder(run: FitConfig) -> None:
    out = Path(run.output_dir)
    (out / ".checkpoint-3.1.tmp").mkdir(parents=True)
    with locked_folder(out), pytest.raises(OutputError, match="another process") as caught:
        fit(run)
    assert caught.value.where == str(out)
    assert (out / ".checkpoint-3.1.tmp").is_dir(), "it may be the other's"
    fit(run)
    assert not list(out.glob(".*"))


def test_a_write_that_fails_leaves_no_checkpoint(
    run: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", fail)
        with pytest.raises(DuetError, match="cannot write") as caught:
            fit(run)
    assert "No space left" in caught.value.got
    out = Path(run.output_dir)
    assert not list(out.glob("checkpoint-*"))
    assert list(out.glob(".checkpoint-*.tmp"))
    fit(run)
    assert not list(out.glob(".*"))


def test_generators_go_back_to_where_they_were(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    torch.save(rng_state(), tmp_path / "rng.pth")
    first = draw()
    assert draw() != first
    restore_rng_state(torch.load(tmp_path / "rng.pth", weights_only=True))
    assert draw() == first
