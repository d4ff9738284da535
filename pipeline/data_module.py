"""The reference's data module: what a stock ``transformers.Seq2SeqTrainer`` takes as it is."""

import tempfile
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.console.logs import note
from pipeline.errors import ConfigError
from pipeline.fit.data.collate import DataCollatorForSupervisedDataset
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.distributed.once_per_node import once_per_node
from pipeline.store.manifest import FILENAME, read_manifest
from pipeline.tokenizer import load_tokenizer
from pipeline.window import saved_length


def make_supervised_data_module(tokenizer: Any, data_args: Any) -> dict[str, Any]:
    """Make data sets and collator for supervised fine-tuning.

    Args:
        tokenizer: A transformers tokenizer; for raw data, its ``model_max_length`` is the window.
        data_args: An object with ``data_path`` (a prepared folder, or raw data, which is then
            prepared) and, if wanted, ``num_data`` (train on the first so many rows; -1: all) and
            ``prepared_dir`` (default ``data/processed``).

    Returns:
        ``train_dataset``, ``eval_dataset`` (None without an eval split) and ``data_collator``.

    Raises:
        ConfigError: The tokenizer gives other ids than the rows have.
        DuetError: What ``prepare`` raises, or a prepared folder that is damaged.

    Source: ``make_supervised_data_module`` of FastChat's ``train_flant5``.
    """
    if not isinstance(data_args.data_path, (str, Path)):
        raise ConfigError(
            "no data",
            where="data_args.data_path",
            got=data_args.data_path,
            do="give a prepared folder, or ShareGPT records",
        )
    folder = Path(data_args.data_path)
    if not (folder / FILENAME).is_file():
        folder = _prepare(tokenizer, data_args)
    _check_tokenizer(tokenizer, folder)
    num_data = getattr(data_args, "num_data", -1)
    has_eval = read_manifest(folder).rows("eval") > 0
    return {
        "train_dataset": SupervisedDataset(
            str(folder), "train", num_rows=num_data if num_data not in (None, -1) else None
        ),
        "eval_dataset": SupervisedDataset(str(folder), "eval") if has_eval else None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer),
    }


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer that reads the rows as something else; note one that lacks pieces."""
    saved = folder / "tokenizer"
    theirs, ours = tokenizer.get_vocab(), load_tokenizer(str(saved)).backend.get_vocab()
    tokens = {i: token for token, i in ours.items()}
    for token, i in theirs.items():
        if ours.get(token, i) != i or tokens.get(i, token) != token:
            raise ConfigError(
                "the tokenizer gives other ids than the rows have",
                where="tokenizer",
                got=f"{token!r} is id {i}; in the rows {tokens.get(i)!r} is",
                do=f"use AutoTokenizer.from_pretrained({str(saved)!r}), which has newlines and "
                "code, and add none",
            )
    if not theirs.keys() >= ours.keys():
        note(f"rows hold pieces that the tokenizer lacks; to decode them use that in {saved}")


def _prepare(tokenizer: Any, data_args: Any) -> Path:
    from pipeline.prepare.stage import prepare_here

    with tempfile.TemporaryDirectory() as temporary:
        # The last part of the path is the name that the manifest gives the model.
        name = Path(str(getattr(tokenizer, "name_or_path", "") or "tokenizer")).name
        saved = Path(temporary) / name
        tokenizer.save_pretrained(saved)
        config = PrepareConfig(
            data_path=(str(data_args.data_path),),
            model_name_or_path=str(saved),
            output_dir=getattr(data_args, "prepared_dir", None) or "data/processed",
            model_max_length=saved_length(tokenizer),
        )
        return once_per_node(lambda: prepare_here(config), Path(config.output_dir))
