"""Settings of a run: ``duet fit``, and ``duet train``, which prepares first."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.fields import (
    LOCAL_INPUTS,
    LOCAL_OUTPUT,
    NAMED,
    REQUIRED,
    option,
    require,
    shared_values,
)
from pipeline.config.fit_options import FitOptions
from pipeline.config.hub import HubOptions
from pipeline.config.prepare import PrepareConfig, PrepareOptions
from pipeline.config.views import ModelSettings


@dataclass(frozen=True, kw_only=True)
class FitConfig(HubOptions, FitOptions):
    """Settings of ``duet fit``: a prepared folder and a model in, a trained folder out."""

    data_path: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        LOCAL_INPUTS,
        help="Prepared folder, as duet prepare printed it. Repeatable; PATH=0.3 uses that "
        "fraction of a folder's examples in each epoch. The eval split of the first "
        "one is evaluated.",
    )
    eval_data_path: tuple[str, ...] = option(
        (),
        LOCAL_INPUTS,
        help="Further prepared folder to evaluate on, as NAME=FOLDER: its eval split, or "
        "all of it. Logged as eval_NAME_loss and eval_NAME_bits_per_byte. Repeatable.",
    )
    model_name_or_path: str = option(
        REQUIRED, NAMED, help="Model to start from: a folder or a hub name."
    )
    output_dir: str = option(
        REQUIRED, NAMED, LOCAL_OUTPUT, help="Folder for checkpoints and the trained model."
    )
    dry_run: bool = option(
        False,
        help="Print steps, padding, memory and time of the run; train nothing, write nothing.",
    )
    model_max_length: int | None = option(
        None, help="Maximum sequence length, in tokens; only checked against the prepared folder's."
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            not self.lora_r
            or Path(self.output_dir).resolve() != Path(self.model_name_or_path).resolve(),
            "output_dir",
            self.output_dir,
            "give another folder than the model's: an adapter is of no use without it",
        )

    @property
    def eval_names(self) -> tuple[str, ...]:
        """What is evaluated: a run's own split, which has no name, and further folders."""
        return ("", *self.eval_folders)

    @property
    def eval_folders(self) -> dict[str, str]:
        """The folders of ``--eval-data-path``, by their names.

        Raises:
            ConfigError: One has no name, or the name of another.
        """
        folders: dict[str, str] = {}
        for text in self.eval_data_path:
            name, _, folder = text.partition("=")
            ok = bool(re.fullmatch(r"\w[\w-]*", name) and folder) and name not in folders
            require(ok, "eval_data_path", text, "give NAME=FOLDER, each with a name of its own")
            folders[name] = folder
        return folders

    @property
    def model(self) -> ModelSettings:
        """What the model is built from."""
        return ModelSettings(name=self.model_name_or_path, **shared_values(self, ModelSettings))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(HubOptions, PrepareOptions, FitOptions):
    """Settings of ``duet train``: both stages in one, with train_flant5's flags."""

    data_path: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        help="File, folder or glob of ShareGPT records; or a prepared folder. Repeatable.",
    )
    eval_data_path: tuple[str, ...] = option(
        (),
        help="File, folder or glob of records for the eval split. Conversations that repeat "
        "them are left out of train. Repeatable.",
    )
    model_name_or_path: str = option(
        REQUIRED, NAMED, help="Model to start from: a folder or a hub name."
    )
    output_dir: str = option(
        REQUIRED, NAMED, LOCAL_OUTPUT, help="Folder for checkpoints and the trained model."
    )
    prepared_dir: str = option(
        "data/processed", NAMED, LOCAL_OUTPUT, help="Folder in which prepared folders are created."
    )
    preprocessed_path: str | None = option(
        None, help="Ignored: prepared folders are kept in --prepared-dir."
    )
    lazy_preprocess: bool = option(False, help="Ignored: examples are always read from disk.")

    def prepare_config(self) -> PrepareConfig:
        """Return the settings of the first stage."""
        return PrepareConfig(
            **shared_values(self, PrepareConfig) | {"output_dir": self.prepared_dir}
        )

    def fit_config(self, prepared: Path) -> FitConfig:
        """Return the settings of the second stage, on the folder that the first one made."""
        values = shared_values(self, FitConfig) | {
            "data_path": (str(prepared),),
            "eval_data_path": (),  # records; they are the prepared folder's eval split
            "model_max_length": None,
        }
        return FitConfig(**values)
