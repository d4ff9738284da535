"""What earlier runs read of files that are still the same, so that these are not opened again.

    .index/files/4a…-9c…json   {"kinds": ["json"], "segments": [[pieces, key of the chunk], …]}

Whether a file is the same is told by its path, size, times and number on the disk. One that
changed a moment ago is not trusted: it might have changed again, within the clock's last tick.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.console.logs import note
from pipeline.errors import OutputError
from pipeline.prepare.files.file_kind import Kind
from pipeline.prepare.files.planning import Group
from pipeline.prepare.files.segments import Piece, Segment
from pipeline.prepare.files.sources import FileState, Source, is_settled
from pipeline.store.atomic import output_errors
from pipeline.store.chunk_cache import ChunkCache
from pipeline.store.fingerprint import key_of
from pipeline.store.seals import read_checked, write_checked

PASSED_OVER = "passed over"
_FIELDS = ("start", "end", "starts_at_anchor", "ends_file", "size")


class FileIndex:
    """The index below one ``--output-dir``.

    Args:
        folder: The ``--output-dir``.
        settings_key: Returns what names all that decides how segments become chunks. It is asked
            only about files that some run has read: others need not wait for the tokenizer.
        chunks: Where chunks are kept.
    """

    def __init__(self, folder: Path, settings_key: Callable[[], str], chunks: ChunkCache) -> None:
        self._folder, self._chunks = folder / ".index/files", chunks
        self._settings_key = settings_key
        self._read_before = {path.name.partition("-")[0] for path in self._folder.glob("*.json")}

    def find(
        self, group: Group, sources: Sequence[Source], states: Sequence[FileState]
    ) -> list[str | None]:
        """Return how the files of a group are read, where that is known; set its segments then."""
        unknown: list[str | None] = [None] * len(group.files)
        if not all(is_settled(states[i]) for i in group.files):
            return unknown
        name = _name(group, sources, states)
        if name not in self._read_before:
            return unknown
        found = read_checked(self._path(name))
        if found is None:
            return unknown
        segments = list[Segment]()
        for pieces, key in found["segments"]:
            if self._chunks.find(key) is None:
                return unknown
            read = [self._piece(group, piece, found["kinds"], sources, states) for piece in pieces]
            segments.append(Segment(tuple(read), known=key))
        group.known = segments
        kinds: list[str | None] = found["kinds"]
        return kinds

    def remember(
        self,
        groups: Sequence[Group],
        sources: Sequence[Source],
        states: Sequence[FileState],
        kinds: Sequence[Kind | None],
    ) -> None:
        """Keep what this run read, of those files that nobody changed meanwhile."""
        for group in groups:
            pieces = [piece for segment, _ in group.segments for piece in segment.pieces]
            is_own = all(p.file in group.files and p.content is None for p in pieces)
            if group.known is None and is_own and all(is_settled(states[i]) for i in group.files):
                entry = {
                    "kinds": [kinds[i] or PASSED_OVER for i in group.files],
                    "segments": [
                        [[_packed(group, piece) for piece in segment.pieces], key]
                        for segment, key in group.segments
                    ],
                }
                path = self._path(_name(group, sources, states))
                # In the run's own folder first: what is half there goes with it.
                written = self._chunks.temporary / path.name
                with _note_errors(), output_errors(path):
                    write_checked(written, entry)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    written.replace(path)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{self._settings_key()}.json"

    def _piece(
        self,
        group: Group,
        packed: dict[str, Any],
        kinds: list[Any],
        sources: Sequence[Source],
        states: Sequence[FileState],
    ) -> Piece:
        number = packed["file"]
        file = group.files[number]
        piece = Piece(file, sources[file], kinds[number], states[file])
        return replace(piece, **{name: packed[name] for name in _FIELDS})


def _name(group: Group, sources: Sequence[Source], states: Sequence[FileState]) -> str:
    """Return what names the files of a group, as they are."""
    files = ((sources[i], states[i]) for i in group.files)
    return key_of([[s.identity(), state, s.split, s.is_named] for s, state in files])


def _packed(group: Group, piece: Piece) -> dict[str, Any]:
    return {"file": group.files.index(piece.file)} | {n: getattr(piece, n) for n in _FIELDS}


@contextlib.contextmanager
def _note_errors() -> Any:
    try:
        yield
    except OutputError as error:
        note(f"the index of read files is not saved, and the next run reads them again: {error}")
