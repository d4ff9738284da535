"""An evaluation is the sum over the split's target tokens, by hand and on any cut."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import micro_batcher_for
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.training.evaluate import Evaluator, count_target_bytes
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import CODE, write_prepared
from tests.fit.training.test_step import OneOfMany


@pytest.fixture
def model(tiny: Path) -> Any:
    with quiet_transformers():
        return AutoModelForSeq2SeqLM.from_pretrained(tiny)


def evaluator(
    model: Any, prepared: Path, tokenizer: TextTokenizer, accelerator: Any = None, max_rows: int = 2
) -> Evaluator:
    dataset = SupervisedDataset(prepared, "eval")
    accelerator = accelerator or OneOfMany()
    micro_batcher = micro_batcher_for(dataset, model.config, max_rows, accelerator.device)
    return Evaluator(dataset, micro_batcher, model.config.pad_token_id, tokenizer, accelerator)


@pytest.mark.parametrize("max_rows", [1, 2, 8])
def test_both_numbers_by_hand(
    model: Any, prepared: Path, tokenizer: TextTokenizer, max_rows: int
) -> None:
    dataset = SupervisedDataset(prepared, "eval")
    total, tokens, text = 0.0, 0, ""
    model.eval()
    with torch.no_grad():
        for row in dataset:
            loss = model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss
            total += float(loss) * len(row["labels"])
            tokens += len(row["labels"])
            text += tokenizer.decode(row["labels"].tolist())
    model.train()
    with_loss = SummedTokenLoss(model)
    values = evaluator(model, prepared, tokenizer, max_rows=max_rows).run(with_loss)
    assert values["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)
    bits = total / math.log(2) / len(text.encode("utf-8"))
    assert values["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert values["eval_runtime"] > 0
    assert with_loss.training  # as it was before
    stop = evaluator(model, prepared, tokenizer).run(with_loss, lambda: signal.SIGTERM)
    assert stop is signal.SIGTERM
    assert with_loss.training


def test_the_same_on_any_number_of_processes(
    model: Any, prepared: Path, tokenizer: TextTokenizer
) -> None:
    with_loss = SummedTokenLoss(model)
    whole = evaluator(model, prepared, tokenizer).run(with_loss)
    for processes in (2, 3, 4):
        shares = [
            evaluator(model, prepared, tokenizer, OneOfMany(i, processes)).run(with_loss)
            for i in range(processes)
        ]
        summed = sum(share["eval_loss"] for share in shares)
        assert summed == pytest.approx(whole["eval_loss"], rel=1e-12)


def test_bytes_are_those_of_the_text_without_its_end(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    (ids,) = tokenizer.encode_batch([CODE])
    rows = {"train": [([1], [*ids, tokenizer.eos_id]), ([1], ids)]}
    dataset = SupervisedDataset(write_prepared(tmp_path / "p", tokenizer, rows))
    assert count_target_bytes(dataset, tokenizer) == 2 * len(CODE.encode("utf-8"))
