"""Checks a folder against its manifest, byte for byte: ``duet verify``."""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import VerifyConfig
from pipeline.errors import InputError
from pipeline.store.fingerprint import sha256_of_file
from pipeline.store.manifest import FILENAME, verify_prepared

CHECKPOINT = "checkpoint.json"


def verify(config: VerifyConfig) -> Iterator[str]:
    """Yield a line for each folder that is as it was written.

    Args:
        config: The folder: a prepared one, a checkpoint, or a run's with checkpoints in it.

    Raises:
        PreparedFolderError: A prepared folder is not as it was written.
        InputError: There is nothing to check against, or a checkpoint is not as it was written.
    """
    folder = Path(config.folder)
    if (folder / FILENAME).is_file():
        files, size = verify_prepared(folder)
        yield _line(folder, files, size)
        return
    checkpoints = [folder] if (folder / CHECKPOINT).is_file() else _checkpoints(folder)
    if not checkpoints:
        raise InputError(
            "nothing to check against",
            where=folder,
            got=f"neither {FILENAME} nor a checkpoint with {CHECKPOINT} in it"
            if folder.is_dir()
            else "no such folder",
            do="give a prepared folder, or the --output-dir of fit with its checkpoints",
        )
    for checkpoint in checkpoints:
        yield _line(checkpoint, *_verify_checkpoint(checkpoint))


def _checkpoints(folder: Path) -> list[Path]:
    found = [path.parent for path in folder.glob(f"checkpoint-*/{CHECKPOINT}")]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _verify_checkpoint(folder: Path) -> tuple[int, int]:
    """Return how many files of how many bytes are as ``checkpoint.json`` has them."""
    path = folder / CHECKPOINT
    try:
        seals = json.loads(path.read_text(encoding="utf-8"))["files"]
        for name, seal in seals.items():
            file = folder / name
            found = {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
            if found != seal:
                raise _damaged(file, f"SHA-256 {found['sha256']}, not {seal['sha256']}")
        return len(seals), sum(seal["bytes"] for seal in seals.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, got: object) -> InputError:
    return InputError(
        "a checkpoint is not as it was written",
        where=path,
        got=got,
        do="delete it: a run goes on from the one before it",
    )


def _line(folder: Path, files: int, size: int) -> str:
    return f"{folder}: {files} files of {size:,} bytes, all as they were written"
