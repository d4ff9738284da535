"""The reference's data module, with raw data and with a prepared folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.errors import ConfigError
from tests.conftest import SAMPLE


@dataclass
class DataArguments:
    data_path: str
    num_data: int = -1
    prepared_dir: str | None = None


def load(path: Path, window: int = 200) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.model_max_length = window
    return tokenizer


@pytest.fixture(scope="module")
def prepared(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PrepareConfig(
        data_path=(str(SAMPLE),),
        model_name_or_path=str(tiny_t5),
        output_dir=str(tmp_path_factory.mktemp("prepared")),
        model_max_length=200,
        eval_fraction=0.3,
    )
    folder: Path = pipeline.prepare(config)
    return folder


def test_a_prepared_folder_is_taken_as_it_is(prepared: Path) -> None:
    tokenizer = load(prepared / "tokenizer")
    module = pipeline.make_supervised_data_module(tokenizer, DataArguments(str(prepared)))
    assert list(module) == ["train_dataset", "eval_dataset", "data_collator"]
    assert len(module["train_dataset"]) + len(module["eval_dataset"]) == 93
    batch = module["data_collator"]([module["train_dataset"][i] for i in range(3)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert tokenizer.decode(module["train_dataset"][0]["input_ids"]).startswith("A chat between")
    few = pipeline.make_supervised_data_module(tokenizer, DataArguments(str(prepared), 5))
    assert len(few["train_dataset"]) == 5


@pytest.mark.parametrize("stock", [True, False])
def test_raw_data_is_prepared(prepared: Path, tiny_t5: Path, tmp_path: Path, stock: bool) -> None:
    tokenizer = load(tiny_t5 if stock else prepared / "tokenizer")
    data_args = DataArguments(str(SAMPLE), prepared_dir=str(tmp_path / "processed"))
    module = pipeline.make_supervised_data_module(tokenizer, data_args)
    assert module["eval_dataset"] is None
    assert len(module["train_dataset"]) == 93
    assert max(len(row["input_ids"]) for row in module["train_dataset"]) <= 200
    (folder,) = (p for p in (tmp_path / "processed").iterdir() if p.name[0] != ".")
    assert str(tmp_path) not in (folder / "manifest.json").read_text(encoding="utf-8")
    again = pipeline.make_supervised_data_module(tokenizer, data_args)
    assert again["train_dataset"].path == module["train_dataset"].path


def test_a_tokenizer_that_reads_the_rows_as_something_else_is_refused(
    prepared: Path, tiny_t5: Path
) -> None:
    """The reference's own order: its tokens take the ids that other pieces have in the rows."""
    tokenizer = load(tiny_t5)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<", "{", "\n"])
    with pytest.raises(ConfigError, match="gives other ids than the rows have"):
        pipeline.make_supervised_data_module(tokenizer, DataArguments(str(prepared)))


def test_a_stock_tokenizer_is_told_what_it_lacks(
    prepared: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.make_supervised_data_module(load(tiny_t5), DataArguments(str(prepared)))
    assert "pieces that the tokenizer lacks" in capsys.readouterr().err
    pipeline.make_supervised_data_module(load(prepared / "tokenizer"), DataArguments(str(prepared)))
    assert capsys.readouterr().err == ""


def test_no_data_path_is_one_line(prepared: Path) -> None:
    data_args: Any = DataArguments(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data_args\.data_path"):
        pipeline.make_supervised_data_module(load(prepared / "tokenizer"), data_args)


@pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data")
def test_a_stock_seq2seq_trainer_takes_it(prepared: Path, tiny_t5: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer, Seq2SeqTrainingArguments

    shutil.copytree(tiny_t5, tmp_path / "model")
    tokenizer = load(prepared / "tokenizer")
    module = pipeline.make_supervised_data_module(tokenizer, DataArguments(str(prepared)))
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    trainer = Seq2SeqTrainer(model=model, args=args, **module)
    trainer.train()
    entries = trainer.state.log_history
    assert [e["step"] for e in entries if "loss" in e] == [1, 2, 3]
    assert any("eval_loss" in e for e in entries)
