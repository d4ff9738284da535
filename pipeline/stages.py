"""Both stages in one: what ``duet train`` does, the drop-in for FastChat's ``train_flant5``."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import TrainConfig
from pipeline.console.logs import note
from pipeline.errors import ConfigError
from pipeline.fit.distributed.once_per_node import once_per_node
from pipeline.store.manifest import FILENAME, read_manifest
from pipeline.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pipeline.fit.training.trainer import TrainerCallback


def train(config: TrainConfig, *, callback: "TrainerCallback | None" = None) -> Path:
    """Prepare, or find prepared, and fit.

    Args:
        config: The settings.
        callback: Is told what happens in training, in each process.

    Returns:
        The trained folder, ``config.output_dir``.

    Raises:
        DuetError: What ``prepare`` and ``fit`` raise.
    """
    from pipeline.fit.stage import fit

    folder: Path = fit(config.fit_config(prepared_folder(config)), callback=callback)
    return folder


def prepared_folder(config: TrainConfig) -> Path:
    """Return the prepared folder of a run, which one process of each node makes."""
    for text in _without_meaning(config):
        note(text)
    if len(config.data_path) == 1 and (Path(config.data_path[0]) / FILENAME).is_file():
        return _checked(Path(config.data_path[0]), config)
    from pipeline.prepare.stage import prepare_here

    return once_per_node(lambda: prepare_here(config.prepare_config()), Path(config.prepared_dir))


def _checked(prepared: Path, config: TrainConfig) -> Path:
    """Return a prepared folder that was given as data, unless it was made in another way."""
    if config.eval_data_path:
        raise ConfigError(
            "a prepared folder already has its eval split",
            where="--eval-data-path",
            got=f"--data-path {prepared}, which is prepared",
            do="leave it out, or give the raw data",
        )
    length = read_manifest(prepared).config["model_max_length"]
    if config.model_max_length not in (length, TrainConfig.model_max_length):
        raise ConfigError(
            "the data was prepared with another length",
            where="--model-max-length",
            got=f"{config.model_max_length}, prepared with {length}",
            do="leave it out, or give the raw data",
        )
    has_own = load_tokenizer(str(prepared / "tokenizer")).template is not None
    if config.chat_template not in ("auto", "model" if has_own else "duet"):
        raise ConfigError(
            "the data was prepared with another chat template",
            where="--chat-template",
            got=f"{config.chat_template}, prepared with {'model' if has_own else 'duet'}",
            do="leave it out, or give the raw data",
        )
    return prepared


def _without_meaning(config: TrainConfig) -> list[str]:
    notes = []
    if config.preprocessed_path is not None:
        notes.append(
            f"--preprocessed-path is ignored: prepared folders are kept in "
            f"{config.prepared_dir}, by their content"
        )
    if config.lazy_preprocess:
        notes.append("--lazy-preprocess is ignored: examples are always read from disk")
    return notes
