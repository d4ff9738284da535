"""``duet train`` takes the reference's command lines: those that its users posted, verbatim.

Only the model is a small one, and the data the sample. The flags are as they stand in FastChat's
docs/training.md (4 GPUs), its issue 643 (8 GPUs; -large in float32) and its issue 2465 (from a
FastChat-T5 folder, whose tokenizer was extended the old way and which crashed the reference).
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from pipeline.cli import run
from tests.conftest import SAMPLE, record

CODE = "def f(x):\n\tif x < 2:\n\t    return {'a': `x` ^ ~x}\\n\n"

COMMON = """
    --data_path ./data/dummy_conversation.json
    --output_dir ./checkpoints_flant5_3b
    --num_train_epochs 3
    --per_device_train_batch_size 1
    --per_device_eval_batch_size 1
    --gradient_accumulation_steps 4
    --evaluation_strategy "no"
    --save_strategy "steps"
    --save_steps 300
    --save_total_limit 1
    --learning_rate 2e-5
    --weight_decay 0.
    --warmup_ratio 0.03
    --lr_scheduler_type "cosine"
    --logging_steps 1
    --fsdp "full_shard auto_wrap"
    --fsdp_transformer_layer_cls_to_wrap T5Block
    --model_max_length 2048
    --preprocessed_path ./preprocessed_data/processed.json
    --gradient_checkpointing True
"""
COMMANDS = {
    "google/flan-t5-xl on 4 and 8 GPUs": COMMON + "--bf16 True --tf32 True",
    "google/flan-t5-large": COMMON + "--bf16 False --tf32 False --report_to none",
    "lmsys/fastchat-t5-3b-v1.0": COMMON
    + "--bf16 True --tf32 True --lazy_preprocess --num_data -1 --cache_dir D",
}


def fastchat_folder(tiny_t5: Path, folder: Path) -> Path:
    """Make a folder as FastChat's own training left it: ten tokens added, ten rows more."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_t5, folder)
    old = ["[PAD]", "<", "{", "\n", "}", "`", " ", "\\", "^", "\t"]
    pieces = 100 + _num_pieces(tiny_t5)
    added = {piece: pieces + i for i, piece in enumerate(old)}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    special = json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8"))
    special["pad_token"] = "[PAD]"
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    for name in ("shared.weight", "lm_head.weight"):
        weights[name] = weights[name][: pieces + len(old)].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = pieces + len(old)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _num_pieces(folder: Path) -> int:
    from sentencepiece import SentencePieceProcessor

    return len(SentencePieceProcessor(model_file=str(folder / "spiece.model")))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with three conversations where the commands look for data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    records = json.loads(SAMPLE.read_text(encoding="utf-8"))[:3]
    records = [each | {"conversations": each["conversations"][:2]} for each in records]
    (tmp_path / "data" / "dummy_conversation.json").write_text(json.dumps(records))
    return tmp_path


def check_trained(output: Path) -> dict[str, Any]:
    """Check that stock transformers loads the result whole; return trainer_state.json."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model, info = AutoModelForSeq2SeqLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.decode(tokenizer(CODE).input_ids, skip_special_tokens=True) == CODE
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings
    state: dict[str, Any] = json.loads((output / "trainer_state.json").read_text())
    return state


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * ("4 and 8" not in n)) for n in COMMANDS],
)
def test_a_posted_command_line_trains(
    name: str, workplace: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fastchat = "fastchat" in name
    model = fastchat_folder(tiny_t5, workplace / "fastchat-t5") if fastchat else tiny_t5
    args = shlex.split(f"--model_name_or_path {model} {COMMANDS[name]}")
    assert run(["train", *args]) == 0
    out, err = capsys.readouterr()
    assert out == "checkpoints_flant5_3b\n"
    for flag in ("--preprocessed-path", "--fsdp"):
        assert sum(flag in line for line in err.splitlines()) == 1, err
    state = check_trained(workplace / "checkpoints_flant5_3b")
    assert state["global_step"] == state["max_steps"]
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == state["max_steps"]
    checkpoints = list((workplace / "checkpoints_flant5_3b").glob("checkpoint-*"))
    assert len(checkpoints) == 1
    assert list((workplace / "data" / "processed").glob("*/manifest.json"))


def test_a_prepared_folder_is_taken_as_it_is(
    workplace: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model-name-or-path", str(tiny_t5)]
    window = ["--model-max-length", "512"]
    assert run(["prepare", "--data-path", "data", *common, *window]) == 0
    prepared = capsys.readouterr().out.strip()
    args = ["--data-path", prepared, "--output-dir", "out", "--max-steps", "1"]
    assert run(["train", *args, *common]) == 0
    facts = json.loads((workplace / "out" / "run.json").read_text())
    assert facts["prepared"]["fingerprint"] == Path(prepared).name
    assert run(["train", *args, *common, "--model-max-length", "100"]) == 1
    assert "prepared with 512" in capsys.readouterr().err
    assert run(["train", *args, *common, "--chat-template", "model"]) == 1
    assert "model, prepared with duet" in capsys.readouterr().err
    assert run(["train", *args, *common, "--eval-data-path", "data"]) == 1
    assert "already has its eval split" in capsys.readouterr().err


def test_eval_data_path_gives_the_split_eval(
    workplace: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "held.json").write_text(json.dumps([record("held", "q", "an answer")]))
    args = ["--data-path", "data", "--eval-data-path", "held.json", "--output-dir", "out"]
    more = ["--model-name-or-path", str(tiny_t5), "--max-steps", "1", "--eval-steps", "1"]
    assert run(["train", *args, *more, "--model-max-length", "64"]) == 0
    (manifest,) = (workplace / "data" / "processed").glob("*/manifest.json")
    evaluated = load_from_disk(str(manifest.parent))["eval"]
    assert list(evaluated["conversation_id"]) == ["held"]
    log = json.loads((workplace / "out" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_loss" in entry for entry in log)


@pytest.mark.slow
def test_torchrun_starts_it_on_two_processes(workplace: Path, tiny_t5: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "-m",
        "pipeline.train",
        *shlex.split(f"--model_name_or_path {tiny_t5} {COMMON} --max_steps 3"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "checkpoints_flant5_3b\n"
    assert result.stderr.count("prepared folder") == 1, "one process prepares"
    assert check_trained(workplace / "checkpoints_flant5_3b")["global_step"] == 3
