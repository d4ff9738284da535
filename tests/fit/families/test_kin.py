"""BART's kin: they train as stock transformers computes them, and load there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from pipeline.cli import run as run_command
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIN)
def test_they_train_and_answer(kind: str, make: Callable[[str], Family], tmp_path: Path) -> None:
    config = {name: value for name, value in (SIZES | KIN[kind]).items() if value is not None}
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        model: Any = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **config))
        model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((make("bart").model / name).read_bytes())
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    starts = () if KIN[kind].get("decoder_start_token_id") == 0 else (0,)
    assert tokenizer.label_prefix_ids == starts
    rows = make_rows(tokenizer, 12, 0)
    data = write_prepared(tmp_path / "data", tokenizer, {"train": rows})
    family = Family(kind, tmp_path / "model", data, tokenizer, rows)
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
