"""TensorBoard, Weights & Biases, Trackio: started, written to and ended by the main process.

A tracker never decides how a run ends. One that cannot start is one line before the first step;
one that fails later is left out with one line, and the run continues without it.
"""

import importlib
import os
import secrets
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.console.logs import note
from pipeline.errors import ConfigError
from pipeline.store.atomic import write_file

PROJECT = "duet"
"""Where runs are filed, unless the tracker's own environment variable names another."""
RUN_ID_FILE = "run_id"
"""In the output folder: the name that a resumed run finds its tracker's run by."""


@dataclass(kw_only=True, slots=True)
class Trackers:
    """The trackers that the settings name."""

    names: Sequence[str]
    """None in a process that does not report."""
    output: Path
    """The output folder."""
    run_name: str | None
    settings: Mapping[str, Any]
    """Of the run, which they show."""
    first_step: int
    """Steps done before this session; 0 for a new run."""
    _started: list[Any] = field(default_factory=list)
    """And still to be ended."""

    def start(self) -> None:
        """Start them.

        Raises:
            ConfigError: One cannot start: it wants a login, a network, a disk.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if not self.names:
            return
        run_id = self._run_id()
        for name in self.names:
            kwargs = self._arguments(name, run_id)
            project = os.environ.get(f"{name.upper()}_PROJECT") or PROJECT
            try:
                tracker = LOGGER_TYPE_TO_CLASS[name](project, **kwargs)
                tracker.start()
                self._started.append(tracker)
                if not (name == "tensorboard" and self.first_step):  # it would be a second entry
                    tracker.store_init_configuration(_plain(self.settings))
            except Exception as error:  # each tracker has its own
                self.finish()
                raise ConfigError(
                    "a tracker cannot be started",
                    where=f"--report-to {name}",
                    got=error,
                    do="do what it says, or use --report-to none",
                ) from error

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send values to all of them; one that fails is left out from then on."""
        self._send(lambda tracker: dict(values), step)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Send a table to all of them; TensorBoard, which has none, gets text."""
        self._send(lambda tracker: {name: _table(tracker.name, rows)}, step)

    def _send(self, values_for: Callable[[Any], dict[str, Any]], step: int) -> None:
        for tracker in list(self._started):
            # A resumed run takes the steps after its checkpoint again; W&B refuses those.
            if tracker.name == "wandb" and step < getattr(tracker.run, "step", 0):
                continue
            try:
                tracker.log(values_for(tracker), step=step)
            except Exception as error:
                self._started.remove(tracker)
                note(f"{tracker.name} failed ({error}); continuing without it")

    def finish(self) -> None:
        """End those that run; what one fails with is only noted."""
        while self._started:
            tracker = self._started.pop()
            try:
                tracker.finish()
            except Exception as error:
                note(f"{tracker.name} failed at the end ({error})")

    def _run_id(self) -> str:
        """Return the run's id: a resumed run has that of the sessions before."""
        path = self.output / RUN_ID_FILE
        if self.first_step and path.is_file():
            return path.read_text(encoding="utf-8").strip()
        run_id = secrets.token_hex(4)
        write_file(path, run_id + "\n")
        return run_id

    def _arguments(self, name: str, run_id: str) -> dict[str, Any]:
        if name == "tensorboard":
            # What an earlier session logged after the checkpoint is hidden.
            purge = {"purge_step": self.first_step + 1} if self.first_step else {}
            return {"logging_dir": str(self.output), **purge}
        if name == "trackio":  # it knows its runs by name
            return {"name": self.run_name or f"run-{run_id}", "resume": "allow"}
        named = {"name": self.run_name} if self.run_name else {}
        run_id = os.environ.get("WANDB_RUN_ID") or run_id
        return {"id": run_id, "resume": "allow", "dir": str(self.output), **named}


def _table(tracker: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return rows as a tracker takes them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if tracker == "tensorboard":
        return "\n\n---\n\n".join(map(_markdown, rows))
    data = [[row.get(name, "") for name in columns] for row in rows]
    return importlib.import_module(tracker).Table(columns=columns, data=data)


def _markdown(row: Mapping[str, Any]) -> str:
    r"""Return a row as Markdown in which its texts stay as they are.

    >>> _markdown({"turn": 1, "answer": "# a\n<b>"})
    '**turn**\n\n    1\n\n**answer**\n\n    # a\n    <b>'
    """
    indented = {name: textwrap.indent(str(value), "    ", bool) for name, value in row.items()}
    return "\n\n".join(f"**{name}**\n\n{text}" for name, text in indented.items())


def _plain(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return the settings as trackers take them."""
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in settings.items()
    }
