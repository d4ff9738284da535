"""Data set and collator work in a stock Seq2SeqTrainer as they are."""

from pathlib import Path

import pytest
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from pipeline.fit.collate import DataCollatorForSupervisedDataset
from pipeline.fit.dataset import SupervisedDataset
from pipeline.fit.model import quiet_transformers


def test_three_steps_and_an_evaluation(tiny: Path, prepared: Path, tmp_path: Path) -> None:
    with quiet_transformers():
        model = AutoModelForSeq2SeqLM.from_pretrained(tiny)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=1e-2,
        logging_steps=1,
        dataloader_pin_memory=False,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=SupervisedDataset(prepared),
        eval_dataset=SupervisedDataset(prepared, "eval"),
        data_collator=DataCollatorForSupervisedDataset(
            AutoTokenizer.from_pretrained(prepared / "tokenizer")
        ),
    )
    before = trainer.evaluate()["eval_loss"]
    assert trainer.train().global_step == 3
    assert trainer.evaluate()["eval_loss"] < before
    assert before == pytest.approx(6, abs=2)
