"""Finds an earlier preparation of the same input, at once; and lets only one run make it.

A prepared folder is named by its fingerprint, which is of the *records'* content, so it is known
only after reading them. For an answer at once, ``.index/`` maps a key of the files' paths, sizes,
times and numbers on the disk (with the options, the tokenizer's files and the schema) to it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pipeline.console.logs import note
from pipeline.errors import PreparedFolderError
from pipeline.json_object import read_json_object
from pipeline.prepare.files.sources import Source, is_settled
from pipeline.store.atomic import output_errors, remove_folder, write_file
from pipeline.store.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class PreparedCache:
    """The prepared folders of one ``--output-dir``, seen from one preparation.

    Args:
        folder: The ``--output-dir``.
        key: Names the input's files as they are, the options, the tokenizer and the schema.
    """

    folder: Path
    key: str

    def find(self) -> Path | None:
        """Return the complete prepared folder of this input, or None."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            entry = read_json_object(self._entry)
            return self.complete(str(entry["fingerprint"]))
        return None

    def complete(self, fingerprint: str) -> Path | None:
        """Return the folder of a fingerprint if it is complete and undamaged, else None."""
        path = self.folder / fingerprint
        if not path.exists():
            return None
        try:
            manifest = read_manifest(path)
        except PreparedFolderError as error:
            note(f"preparing again: {error}")
            return None
        return path if manifest.fingerprint == fingerprint else None

    def remember(self, fingerprint: str, sources: Sequence[Source]) -> None:
        """Write down where this input's preparation is, if a change of its files would show."""
        if all(is_settled(source.state) for source in sources):
            write_file(self._entry, json.dumps({"fingerprint": fingerprint}))

    @property
    def chunks(self) -> Path:
        """Where the chunks lie that preparations in this folder share."""
        return self.folder / ".chunks"

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """Make a sibling to work in; it is gone afterwards, and so are those of killed runs."""
        # Whoever holds this input's lock is its only run.
        for left in self.folder.glob(f".tmp-{self.key}-*"):
            remove_folder(left)  # waits: a worker may outlive a killed run by a moment
        for left in self.folder.glob(f".index/.{self.key}.json.*.tmp"):
            left.unlink(missing_ok=True)
        path = self.folder / f".tmp-{self.key}-{os.getpid()}"
        try:
            with output_errors(path):
                path.mkdir(parents=True)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def _entry(self) -> Path:
        return self.folder / ".index" / f"{self.key}.json"


@contextlib.contextmanager
def lock_in(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock of a folder; one whose owner died does not block."""
    path = folder / ".locks" / f"{name}.lock"
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
