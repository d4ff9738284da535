"""Checks a folder against the sizes and hashes in it, byte for byte: ``duet verify``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import VerifyConfig
from pipeline.console.progress import Wait
from pipeline.console.units import counted
from pipeline.errors import InputError
from pipeline.json_object import read_json_object
from pipeline.store.manifest import FILENAME, verify_prepared
from pipeline.store.seals import FileSeal, find_difference, read_sealed_json

CHECKPOINT = "checkpoint.json"
TRAINED = "checksums.json"
_STATE = "trainer_state.json"
_OLD_CHECKPOINT = {"schema_version", "identity", "processes", "progress", "files"}
"""The keys of a ``checkpoint.json`` that vouches for the other files alone."""


def verify(config: VerifyConfig) -> Iterator[str]:
    """Yield a line for each folder that is as it was written.

    Args:
        config: The folder: a prepared one, a checkpoint, or a run's output folder: the trained
            model in it and its checkpoints.

    Raises:
        PreparedFolderError: A prepared folder was changed.
        InputError: There is nothing to check against, or a checkpoint or the trained model was
            changed.
    """
    folder = Path(config.folder)
    if (folder / FILENAME).is_file():
        with Wait("verifying", unit="bytes"):
            line = _line(folder, *verify_prepared(folder))
        yield line
        return
    if (folder / CHECKPOINT).is_file():
        yield _verify(folder / CHECKPOINT)
        return
    checkpoints = _checkpoints(folder)
    if (folder / TRAINED).is_file():
        yield _verify(folder / TRAINED)
    elif (folder / _STATE).is_file() and checkpoints:
        yield f"{folder}: the trained model is an older version's, without {TRAINED}: not checked"
    elif not checkpoints:
        raise _nothing_to_check(folder)
    for path in checkpoints:
        yield _verify(path)


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.glob(f"checkpoint-*/{CHECKPOINT}")
    return sorted(found, key=lambda path: (len(path.parent.name), path.parent.name))


def _verify(path: Path) -> str:
    """Check the files that a ``checkpoint.json`` or ``checksums.json`` names, and it itself."""
    try:
        fields, own_size = _read(path)
        seals = {name: FileSeal(**seal) for name, seal in fields["files"].items()}
        with Wait(f"verifying {path.parent.name}", sum(s.bytes for s in seals.values()), "bytes"):
            difference = find_difference(path.parent, seals)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, path, error) from error
    if difference:
        raise _damaged(path, *difference)
    size = own_size + sum(seal.bytes for seal in seals.values())
    return _line(path.parent, len(seals) + bool(own_size), size)


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a file says, and its size; 0 of an older version's, which has no checksum."""
    try:
        return read_sealed_json(path), path.stat().st_size
    except ValueError:
        fields = read_json_object(path)
        if path.name == CHECKPOINT and set(fields) == _OLD_CHECKPOINT:
            return fields, 0
        raise


def _damaged(record: Path, where: Path, got: object) -> InputError:
    if record.name == CHECKPOINT:
        return InputError(
            "a checkpoint was changed after it was written",
            where=where,
            got=got,
            do="delete it: the run then resumes from the one before",
        )
    return InputError(
        "a trained model was changed after it was written",
        where=where,
        got=got,
        do=f"copy it again; or delete {_STATE}, and the command that trained it writes it again "
        "from the last checkpoint",
    )


def _nothing_to_check(folder: Path) -> InputError:
    got = f"neither {FILENAME} nor {TRAINED}, nor a checkpoint with {CHECKPOINT} in it"
    do = "give a prepared folder, a checkpoint, or the --output-dir of fit"
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
    elif (folder / _STATE).is_file():
        got = f"a trained model without {TRAINED}, as older versions wrote it"
        do = "compare it with the place that it was copied from"
    return InputError("nothing to check against", where=folder, got=got, do=do)


def _line(folder: Path, files: int, size: int) -> str:
    return f"{folder}: {counted(files, 'file')}, {size:,} bytes, all as they were written"
