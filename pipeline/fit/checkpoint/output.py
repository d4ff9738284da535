"""The output folder of a run: made before anything takes time, and held while the run writes."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.store.atomic import locked_folder, output_errors, unfinished_files


@contextlib.contextmanager
def holding_output(output: Path, *, is_main: bool) -> Iterator[None]:
    """Make the folder, keep other runs out of it, and delete what one that was killed left there.

    A launcher that is killed leaves its processes running.

    Args:
        output: The folder.
        is_main: Whether this is the process that writes; the others do nothing.

    Raises:
        OutputError: It cannot be written, or another run writes into it.
    """
    if not is_main:
        yield
        return
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):  # known now, and not after the training
            pass
    with locked_folder(output):
        delete_leftovers(output)
        yield


def delete_leftovers(output: Path) -> None:
    """Delete what a run that was killed left half written."""
    for pattern in (".checkpoint-*.tmp", ".checkpoint-*.old", ".trained.*.tmp"):
        for folder in output.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    for path in unfinished_files(output):
        path.unlink(missing_ok=True)
