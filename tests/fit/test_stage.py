"""A run as a whole: what it writes, logs, says and refuses."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, TrainerState

import pipeline
from pipeline.config import FitConfig
from pipeline.errors import ConfigError, ModelError, OutputError, PreparedFolderError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.prepared import check_shards, open_data
from pipeline.fit.distributed.launch import check_joined
from pipeline.fit.model.embedding import is_tied
from pipeline.fit.model.fingerprint import architecture
from pipeline.fit.model.loading import build_model, quiet_transformers
from pipeline.fit.model.token_ids import model_token_ids
from pipeline.fit.stage import fit
from pipeline.fit.training.step import StepResult
from pipeline.fit.training.throughput import METRICS
from pipeline.fit.training.trainer import Trainer, TrainerCallback
from pipeline.tokenizer import TextTokenizer
from pipeline.tokenizer.vocabulary import NEW_PIECES
from tests.fit.helpers import (
    CODE,
    NOT_A_LEAF,
    Hooks,
    changed,
    log_of,
    make_rows,
    state_of,
    weights_of,
    write_prepared,
)


def loaded(folder: Path) -> tuple[Any, dict[str, Any]]:
    with quiet_transformers():
        model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    return model, info


@pytest.mark.parametrize("kind", ["untied", "tied", "fresh"])
def test_the_trained_folder_loads_with_nothing_amiss(
    config: FitConfig, tiny: Path, tied: Path, kind: str
) -> None:
    start = tied if kind == "tied" else tiny
    out = fit(
        changed(
            config,
            model_name_or_path=str(start),
            from_scratch=kind == "fresh",
            save_strategy="epoch",
        )
    )
    for folder in (out, out / "checkpoint-5", out / "checkpoint-6"):
        model, info = loaded(folder)
        assert not any(info.values()), info
        assert is_tied(model) == (kind == "tied")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.config.scale_decoder_outputs == (kind == "tied")
        saved = json.loads((folder / "config.json").read_text("utf-8"))
        assert saved["tie_word_embeddings"] == (kind == "tied")
        for name, tensor in weights_of(folder).items():
            assert torch.equal(model.state_dict()[name], tensor), name
    assert not torch.equal(model.shared.weight, loaded(start)[0].shared.weight)


def test_the_trained_folder_has_the_tokenizer_and_can_generate(config: FitConfig) -> None:
    out = fit(config)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer(CODE, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == CODE
    generation = GenerationConfig.from_pretrained(out)
    assert (generation.decoder_start_token_id, generation.eos_token_id) == (0, 1)
    assert generation.pad_token_id == 0
    model, _ = loaded(out)
    made = model.generate(torch.tensor([ids]), max_new_tokens=3)
    assert made[0, 0] == 0
    assert (out / "spiece.model").is_file()
    assert not list(out.glob(".*"))


def test_the_state_is_the_trainers(config: FitConfig) -> None:
    out = fit(changed(config, eval_strategy=None, eval_steps=4))
    state = TrainerState.load_from_json(str(out / "trainer_state.json"))
    assert (state.global_step, state.max_steps, state.epoch) == (6, 6, 1.2)
    assert (state.num_train_epochs, state.train_batch_size) == (2, 4)
    assert (state.logging_steps, state.eval_steps, state.best_metric) == (1, 4, None)
    assert state.num_input_tokens_seen > 0
    kinds = [
        next(name for name in entry if name.endswith(("loss", "runtime")))
        for entry in state.log_history
    ]
    assert kinds == ["loss"] * 4 + ["eval_loss"] + ["loss"] * 2 + ["eval_loss", "train_runtime"]
    values = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
    assert set(state.log_history[0]) == values | set(METRICS)
    assert set(state.log_history[4]) == {
        "eval_loss",
        "eval_bits_per_byte",
        "eval_runtime",
        "epoch",
        "step",
    }
    assert set(state.log_history[-1]) == {
        "train_runtime",
        "train_loss",
        "train_samples_per_second",
        "train_steps_per_second",
        "epoch",
        "step",
    }
    assert [entry["epoch"] for entry in state.log_history[:2]] == [0.2, 0.4]


def test_the_rate_in_the_log_is_the_one_the_step_used(config: FitConfig) -> None:
    log = log_of(fit(changed(config, warmup_steps=2)))
    rates = [entry["learning_rate"] for entry in log if "loss" in entry]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


def test_an_entry_is_the_mean_over_the_target_tokens_of_its_steps(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    from pipeline.fit.data.dataset import SupervisedDataset
    from pipeline.fit.data.sampler import BatchSampler

    config = changed(config, model_name_or_path=str(still), train_batch_size=3)
    each = log_of(fit(changed(config, output_dir=str(tmp_path / "each"))))
    some = log_of(fit(changed(config, output_dir=str(tmp_path / "some"), logging_steps=4)))
    lengths = SupervisedDataset(config.data_path[0]).lengths
    plan = BatchSampler(*lengths, global_batch_size=3, seed=42)
    tokens = [int(lengths[1][plan.rows_of(step)].sum()) for step in range(6)]
    losses = [entry["loss"] for entry in each[:6]]
    for entry, (first, last) in zip(some, ((0, 4), (4, 6)), strict=False):
        assert entry["step"] == last
        mean = np.average(losses[first:last], weights=tokens[first:last])
        assert entry["loss"] == pytest.approx(mean, rel=1e-9)
        assert entry["grad_norm"] == each[last - 1]["grad_norm"]
    assert some[-1]["train_loss"] == pytest.approx(np.average(losses, weights=tokens), rel=1e-9)


def test_rows_of_a_step_mean_the_same_however_they_are_cut(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    # Twenty rows: the third step, the last of an epoch, has four.
    config = changed(config, model_name_or_path=str(still), learning_rate=1e-3, max_steps=3)
    cuts: list[dict[str, Any]] = [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 3, "train_batch_size": 8},
        {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    ]
    logs = [
        log_of(fit(changed(config, output_dir=str(tmp_path / f"{i}"), **cut)))
        for i, cut in enumerate(cuts)
    ]
    for other in logs[1:]:
        for one, two in zip(logs[0], other, strict=True):
            assert two == pytest.approx(one, rel=2e-4)


def test_training_lowers_the_loss(config: FitConfig) -> None:
    log = log_of(fit(changed(config, max_steps=16, eval_strategy="steps", eval_steps=8)))
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    evals = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(evals) == 2
    assert evals[1] < evals[0]


def test_bfloat16_computes_near_float32_and_saves_float32(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    config = changed(config, model_name_or_path=str(still), learning_rate=1e-3)
    full = log_of(fit(config))
    half = fit(changed(config, bf16=True, output_dir=str(tmp_path / "half")))
    for one, two in zip(full[:6], log_of(half)[:6], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=0.02)
        assert two["loss"] != one["loss"]
    assert {tensor.dtype for tensor in weights_of(half).values()} == {torch.float32}
    # And the next run in this process is float32 again.
    assert log_of(fit(changed(config, output_dir=str(tmp_path / "again")))) == full


def test_the_first_rows_alone(config: FitConfig) -> None:
    out = fit(changed(config, num_data=8, max_steps=-1, num_train_epochs=2.5))
    assert state_of(out)["max_steps"] == 5


def test_what_a_run_was_made_of_is_written_down(config: FitConfig, prepared: Path) -> None:
    out = fit(changed(config, train_batch_size=6))
    run = json.loads((out / "run.json").read_text("utf-8"))
    assert run["settings"]["learning_rate"] == 1e-2
    assert run["settings"]["data_path"] == [str(prepared)]
    assert run["prepared"]["fingerprint"] == "both"
    assert run["prepared"]["rows"] == {"train": 20, "eval": 5}
    assert run["prepared"]["counts"] == {"pairs": 25}
    assert run["rows_per_step"] == 6
    assert "--train-batch-size" in run["rows_per_step_source"]
    assert run["processes"] == 1
    assert run["device"].startswith("cpu")
    assert run["versions"]["torch"] == torch.__version__


def test_everything_is_said_on_stderr(
    config: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(changed(config, tf32=True, fsdp="full_shard auto_wrap", eval_strategy=None))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert "note: global batch size 4 = 4 per device x 1 process x 1 accumulation step" in lines
    assert "note: --tf32 is ignored: this device does not support it" in lines
    assert sum("--fsdp is ignored" in line for line in lines) == 1
    assert sum(line.startswith("step 3/6: loss ") for line in lines) == 1
    assert [line.count("eval_loss ") for line in lines if ": eval_loss " in line] == [1]


def test_a_bar_on_a_terminal(
    config: FitConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(changed(config, logging_steps=6))
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 6/6: loss" in err


def test_entries_reach_tensorboard(config: FitConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = fit(changed(config, report_to="tensorboard", eval_strategy=None, eval_samples=2))
    events = EventAccumulator(str(out / "duet"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    wanted = [(entry["step"], entry["loss"]) for entry in log_of(out) if "loss" in entry]
    assert losses == [(step, pytest.approx(loss)) for step, loss in wanted]
    assert len(events.Scalars("eval/bits_per_byte")) == 1
    (samples,) = events.Tensors("eval/samples/text_summary")
    assert samples.tensor_proto.string_val[0].decode().count("**answer**") == 2


def test_a_tracker_that_is_not_installed(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    with pytest.raises(ConfigError, match="package is not installed") as caught:
        fit(changed(config, report_to="tensorboard,wandb"))
    assert caught.value.do == "pip install wandb"
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize(
    ("kind", "seen", "words"),
    [
        ("DistributedType.FSDP", 2, "sharding"),
        ("DistributedType.DEEPSPEED", 2, "sharding"),
        ("DistributedType.NO", 1, "cannot join"),
    ],
)
def test_what_a_launcher_may_not_set_up(kind: str, seen: int, words: str) -> None:
    accelerator = SimpleNamespace(distributed_type=kind, num_processes=seen)
    with pytest.raises(ConfigError, match=words):
        check_joined(accelerator, 2)
    check_joined(SimpleNamespace(distributed_type="DistributedType.MULTI_CPU", num_processes=2), 2)


def test_another_length_than_the_datas(config: FitConfig) -> None:
    with pytest.raises(ConfigError, match="another length") as caught:
        fit(changed(config, model_max_length=128))
    assert "prepared with 64" in caught.value.got
    fit(changed(config, model_max_length=64))


def test_an_evaluation_without_a_split(config: FitConfig, train_only: Path) -> None:
    config = changed(config, data_path=str(train_only))
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        fit(changed(config, eval_strategy="epoch"))
    log = log_of(fit(changed(config, eval_strategy=None)))
    assert not any("eval_loss" in entry for entry in log)


def test_an_empty_split_is_none(
    config: FitConfig, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    rows = {"train": make_rows(tokenizer, 4, 0), "eval": []}
    folder = write_prepared(tmp_path / "empty", tokenizer, rows)
    log = log_of(fit(changed(config, data_path=str(folder), eval_strategy=None)))
    assert not any("eval_loss" in entry for entry in log)


def test_an_output_folder_that_cannot_be_written(config: FitConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot write"):
            fit(changed(config, output_dir=str(path)))


def test_no_prepared_folder_and_no_model(config: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(PreparedFolderError, match="no such prepared folder"):
        fit(changed(config, data_path=str(tmp_path / "none")))
    with pytest.raises(ModelError, match="cannot be found"):
        fit(changed(config, model_name_or_path=str(tmp_path / "none")))


@pytest.mark.parametrize("shard", ["train", "eval"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_ids_that_were_overwritten_are_found_before_the_training(
    config: FitConfig,
    prepared: Path,
    tmp_path: Path,
    shard: str,
    size: str,
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "data")
    column = SupervisedDataset(folder, shard)[0]["input_ids"].numpy().astype(np.uint16).tobytes()
    file = next((folder / shard).glob("*.arrow"))
    file.write_bytes(file.read_bytes().replace(column, b"\xee" * len(column)))
    config = changed(config, data_path=str(folder))
    with pytest.raises(PreparedFolderError, match="damaged") as caught:
        if size == "large":
            check_shards(open_data(config), most_hashed=0)
        else:
            fit(config)
    assert str(folder / shard) in caught.value.where
    assert ("SHA-256" in caught.value.got) == (size == "small")


@pytest.mark.parametrize(("rate", "steps"), [(1e30, 8), (1e38, 8), (3e38, 1)])
def test_a_divergence_is_an_error(config: FitConfig, rate: float, steps: int) -> None:
    with pytest.raises(ModelError, match="diverged") as caught:
        fit(changed(config, learning_rate=rate, max_steps=steps, save_strategy="steps"))
    assert caught.value.where.startswith("step ")


class Spoil(TrainerCallback):
    """Puts a weight that is no number into the model after the first step."""

    def on_train_begin(self, trainer: Trainer) -> None:
        self.model: Any = trainer.model

    def on_step_end(self, step: int, result: StepResult) -> None:
        with torch.no_grad():
            self.model.model.lm_head.weight[3, 3] = math.nan


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_weights_that_are_no_numbers_are_not_saved(config: FitConfig, strategy: str) -> None:
    config = changed(config, save_strategy=strategy, save_steps=1, max_steps=1)
    with pytest.raises(ModelError, match="diverged") as caught:
        fit(config, callback=Spoil())
    assert caught.value.got.startswith("lm_head.weight")
    assert [path.name for path in Path(config.output_dir).iterdir()] == ["log.jsonl"]


def fastchat_like(tiny: Path, tokenizer: TextTokenizer, folder: Path) -> Path:
    """Make a model that was extended the old way, its weights in several files."""
    shutil.copytree(tiny, folder)
    new = tokenizer.backend.get_vocab()
    base = min(new[piece] for piece in NEW_PIECES)
    added = {token: base + i for i, token in enumerate(("[PAD]", "<", "{", "\n", "}", "`"))}
    (folder / "added_tokens.json").write_text(json.dumps(added), "utf-8")
    model, _ = loaded(folder)
    (folder / "model.safetensors").unlink()
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "pytorch_model.bin").write_bytes(b"older weights")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_a_run_whose_output_is_the_models_own_folder(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = fastchat_like(tiny, tokenizer, tmp_path / "model")
    (folder / "README.md").write_text("mine")
    config = changed(config, model_name_or_path=str(folder), output_dir=str(folder))
    before = architecture(config.model_name_or_path, None)
    fit(config)
    assert architecture(config.model_name_or_path, None) == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "generation_config.json",
        "log.jsonl",
        "model.safetensors",
        "run.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    ]
    ids = AutoTokenizer.from_pretrained(folder)(CODE, split_special_tokens=True).input_ids
    assert ids == [*tokenizer.encode_batch([CODE])[0], tokenizer.eos_id]
    saved, again = weights_of(folder), build_model(config.model, tokenizer).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())


def test_what_an_older_tokenizer_left_beside_the_new_one_says_nothing(
    config: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = fastchat_like(tiny, tokenizer, tmp_path / "model")
    tokenizer.save(folder, model_max_length=64)
    assert (folder / "added_tokens.json").is_file()
    assert model_token_ids(str(folder)) == tokenizer.backend.get_vocab()


def test_settings_that_are_no_json_do_not_fail(config: FitConfig) -> None:
    object.__setattr__(config, "run_name", Path("first"))
    out = fit(config)
    run = json.loads((out / "run.json").read_text("utf-8"))
    assert run["settings"]["run_name"] == "first"


def test_out_of_memory_says_what_to_do(config: FitConfig) -> None:
    def fail(step: int) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match="out of memory") as caught:
        fit(config, callback=Hooks(step_begin=fail))
    assert "--train-batch-size 4" in caught.value.do


def test_a_run_that_failed_leaves_nothing_to_the_next(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    config = changed(config, model_name_or_path=str(still))
    whole = log_of(fit(config))
    with pytest.raises(ModelError, match="cannot be found"):
        fit(
            changed(
                config,
                model_name_or_path=str(tmp_path / "none"),
                bf16=True,
                output_dir=str(tmp_path / "failed"),
            )
        )
    assert log_of(fit(changed(config, output_dir=str(tmp_path / "again")))) == whole


@pytest.mark.slow
@NOT_A_LEAF
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_compiled_model_trains_alike_and_keeps_its_names(
    config: FitConfig, still: Path, tmp_path: Path
) -> None:
    config = changed(config, model_name_or_path=str(still), max_steps=2)
    plain = fit(config)
    compiled = fit(changed(config, torch_compile=True, output_dir=str(tmp_path / "compiled")))
    assert weights_of(plain).keys() == weights_of(compiled).keys()
    for one, two in zip(log_of(plain), log_of(compiled), strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_the_package_is_callable_and_light() -> None:
    assert pipeline.fit.stage.fit is fit
    code = "import sys, pipeline.fit; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_mean_of_nothing_is_no_number() -> None:
    from pipeline.fit.checkpoint.train_state import Sums

    assert math.isnan(Sums().mean())


def test_eight_bits_without_bitsandbytes_is_one_line(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "bitsandbytes" else find(name),
    )
    with pytest.raises(ConfigError, match="package is not installed") as caught:
        fit(changed(config, optim="adamw_8bit"))
    assert caught.value.where == "--optim adamw_8bit"


def test_muon_with_an_older_torch_is_one_line(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match="no Muon") as caught:
        fit(changed(config, optim="muon"))
    assert caught.value.where == "--optim muon"
