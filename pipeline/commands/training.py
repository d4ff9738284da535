"""``duet fit`` and ``duet train``: in this process, or in several that are started here."""

from pathlib import Path

from pipeline.commands.launch import launch, processes_to_start
from pipeline.config import FitConfig, TrainConfig
from pipeline.config.run_file import FILENAME, run_file_of
from pipeline.console.logs import print_result
from pipeline.fit.stage import estimate, fit
from pipeline.fit.training.trainer import Trainer, TrainerCallback
from pipeline.stages import train
from pipeline.store.atomic import write_file
from pipeline.world import World


class _SettingsBeside(TrainerCallback):
    """Writes the settings beside the checkpoints, once the run is known to be able to go."""

    def __init__(self, command: str, config: FitConfig | TrainConfig) -> None:
        self._path = Path(config.output_dir) / FILENAME
        self._text = run_file_of(command, config)

    def on_train_begin(self, trainer: Trainer) -> None:
        if trainer.hosts.rank == 0:
            write_file(self._path, self._text)


def run_fit(config: FitConfig) -> None:
    """Train, and print the output folder; with ``dry_run`` a table in its place."""
    processes = processes_to_start(config)
    if config.dry_run:
        estimate(config, max(processes, World.from_environment().size))
    elif processes > 1:
        launch("fit", config, processes)
    else:
        print_result(fit(config, callback=_SettingsBeside("fit", config)))


def run_train(config: TrainConfig) -> None:
    """Prepare, train, and print the output folder."""
    processes = processes_to_start(config)
    if processes > 1:
        launch("train", config, processes)
    else:
        print_result(train(config, callback=_SettingsBeside("train", config)))
