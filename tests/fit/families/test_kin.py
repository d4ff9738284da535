"""BART's kin: they train as stock transformers computes them, and load there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from pipeline.cli import run as run_command
from pipeline.errors import ModelError
from pipeline.fit.data.collate import DataCollatorForSupervisedDataset
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.stage import fit
from pipeline.tokenizer import load_tokenizer
from tests.fit.families.conftest import Family
from tests.fit.helpers import log_of, make_rows, write_prepared

SIZES: dict[str, Any] = {
    "vocab_size": 384, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
    "max_position_embeddings": 128, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip
LED = {
    "max_position_embeddings": None, "max_encoder_position_embeddings": 128,
    "max_decoder_position_embeddings": 128, "attention_window": 8,
}  # fmt: skip
KIN: dict[str, dict[str, Any]] = {
    "mbart": {}, "plbart": {}, "mvp": {}, "led": LED, "m2m_100": {},
    "pegasus": {"decoder_start_token_id": 1}, "marian": {"decoder_start_token_id": 1},
    "pegasus_x": {"block_size": 16, "num_global_tokens": 4, "decoder_start_token_id": 1},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blenderbot": {"decoder_start_token_id": 0}, "blenderbot-small": {"decoder_start_token_id": 0},
}  # fmt: skip


PROPHET: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 128, "bos_token_id": 0, "pad_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "ngram": 2, "dropout": 0.0,
}  # fmt: skip


def make_kin(kind: str, sizes: dict[str, Any], make: Callable[[str], Family], path: Path) -> Family:
    """Write a small model with BART's tokenizer, and rows for it."""
    config = {name: value for name, value in sizes.items() if value is not None}
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        model: Any = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **config))
        model.save_pretrained(path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / "model" / name).write_bytes((make("bart").model / name).read_bytes())
    tokenizer = load_tokenizer(str(path / "model"))
    rows = make_rows(tokenizer, 12, 0)
    data = write_prepared(path / "data", tokenizer, {"train": rows, "eval": rows[:2]})
    return Family(kind, path / "model", data, tokenizer, rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIN)
def test_they_train_and_answer(kind: str, make: Callable[[str], Family], tmp_path: Path) -> None:
    family = make_kin(kind, SIZES | KIN[kind], make, tmp_path)
    starts = () if KIN[kind].get("decoder_start_token_id") == 0 else (0,)
    assert family.tokenizer.label_prefix_ids == starts
    rows = family.rows
    still = {"learning_rate": 1e-12, "max_steps": 1, "per_device_train_batch_size": 12}
    out = fit(family.run(tmp_path / "out", **still))
    with quiet_transformers():
        loaded, info = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    sides = [{"input_ids": source, "labels": target} for source, target in rows]
    batch = DataCollatorForSupervisedDataset(loaded.config)(sides)
    wanted = loaded.eval()(**batch).loss.item()
    assert log_of(out)[0]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert run_command(["chat", str(out), "--message", "Hi", "--max-new-tokens", "3"]) == 0
    fit(family.run(tmp_path / "lora", lora_r=2, **still))


def test_what_transformers_cannot_write_with_is_one_line(
    make: Callable[[str], Family], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ProphetNet trains; that it cannot answer is said before a question, or a step."""
    family = make_kin("prophetnet", PROPHET, make, tmp_path)
    out = fit(family.run(tmp_path / "out"))
    assert run_command(["chat", str(out), "--message", "Hi"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: transformers cannot write answers with this model")
    assert "prophetnet: " in said
    with pytest.raises(ModelError, match="cannot write") as error:
        fit(family.run(tmp_path / "samples", eval_strategy="steps", eval_samples=1))
    assert error.value.where == "--eval-samples"
    assert not (tmp_path / "samples" / "log.jsonl").exists()


def test_rows_and_answers_keep_to_the_positions(
    make: Callable[[str], Family], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of up to 54 tokens in a window of 64, for BART with 56 positions, and with 40."""
    family = make_kin("bart", SIZES | {"max_position_embeddings": 56}, make, tmp_path / "56")
    answered = {"eval_strategy": "steps", "eval_samples": 1}
    fit(family.run(tmp_path / "lora", lora_r=2, **answered))
    out = fit(family.run(tmp_path / "out", **answered))
    assert run_command(["chat", str(out), "--message", "Hi " * 99, "--repetition-penalty=9"]) == 0
    capsys.readouterr()
    assert run_command(["chat", str(out), "--message", "Hi", "--max-new-tokens", "57"]) == 1
    assert "give at most 56" in capsys.readouterr().err
    family = make_kin("bart", SIZES | {"max_position_embeddings": 40}, make, tmp_path / "40")
    for changes in ({}, {"dry_run": True}):
        with pytest.raises(ModelError, match="too long for the model") as error:
            fit(family.run(tmp_path / "refused", **changes))
        assert "--model-max-length 40" in error.value.do
