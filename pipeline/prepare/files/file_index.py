"""What earlier runs read of files that are still the same, so that these are not opened again.

    .index/files/4a…-9c…json   {"kinds": ["json"], "segments": [[pieces, key of the chunk], …]}

A piece is the number of its file in the group, and the next five fields of ``Piece``; the kind of a
file without records is null.

Whether a file is the same is told by its path, size, times and number on the disk. One that
changed a moment ago is not trusted: it might have changed again, within the clock's last tick.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.console.logs import note
from pipeline.errors import OutputError
from pipeline.prepare.files.file_kind import NO_RECORDS, Kind, NoData
from pipeline.prepare.files.planning import Group
from pipeline.prepare.files.segments import Piece, Segment
from pipeline.prepare.files.sources import Source, is_settled
from pipeline.store.atomic import output_errors
from pipeline.store.chunk_cache import ChunkCache
from pipeline.store.fingerprint import key_of
from pipeline.store.seals import read_checked, write_checked

_SCHEMA = 2  # of an entry: its form, and the order of the fields of ``Piece``


class FileIndex:
    """The index below one ``--output-dir``.

    Args:
        folder: The ``--output-dir``.
        sources: The files of this run.
        settings_key: Returns what names all that decides how segments become chunks. It is asked
            only about files that some run has read: others need not wait for the tokenizer.
        chunks: Where chunks are kept.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        settings_key: Callable[[], str],
        chunks: ChunkCache,
    ) -> None:
        self._folder, self._chunks = folder / ".index/files", chunks
        self._sources, self._settings_key = sources, settings_key
        self._read_before = {path.name.partition("-")[0] for path in self._folder.glob("*.json")}

    def find(self, group: Group) -> list[Kind | NoData | None]:
        """Return what the files of a group are, where that is known; set its segments then."""
        unknown: list[Kind | NoData | None] = [None] * len(group.files)
        name = self._name(group)
        if name not in self._read_before or not self._is_settled(group):
            return unknown
        found = read_checked(self._path(name))
        if found is None or any(self._chunks.find(key) is None for _, key in found["segments"]):
            return unknown
        kinds: list[Kind | None] = found["kinds"]
        group.known = [
            Segment(tuple(self._piece(group, kinds, *piece) for piece in pieces), known=key)
            for pieces, key in found["segments"]
        ]
        return [kind or NO_RECORDS for kind in kinds]

    def remember(self, groups: Sequence[Group], kinds: Sequence[Kind | None]) -> None:
        """Keep what this run read, of those files that nobody changed meanwhile."""
        for group in groups:
            pieces = [piece for segment, _ in group.segments for piece in segment.pieces]
            is_own = all(p.file in group.files and p.content is None for p in pieces)
            if group.known is None and is_own and self._is_settled(group):
                segments = [
                    ([_packed(group, piece) for piece in segment.pieces], key)
                    for segment, key in group.segments
                ]
                entry = {"kinds": [kinds[i] for i in group.files], "segments": segments}
                self._write(self._path(self._name(group)), entry)

    def _write(self, path: Path, entry: dict[str, Any]) -> None:
        # In the run's own folder first: what is half there goes with it.
        written = self._chunks.temporary / path.name
        try:
            with output_errors(path):
                write_checked(written, entry)
                path.parent.mkdir(parents=True, exist_ok=True)
                written.replace(path)
        except OutputError as error:
            note(
                f"the index of read files is not saved, and the next run reads them again: {error}"
            )

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{self._settings_key()}.json"

    def _name(self, group: Group) -> str:
        """Return what names the files of a group, as they are."""
        files = [self._sources[i] for i in group.files]
        return key_of(_SCHEMA, [[s.identity(), s.state, s.split, s.is_named] for s in files])

    def _is_settled(self, group: Group) -> bool:
        return all(is_settled(self._sources[i].state) for i in group.files)

    def _piece(
        self, group: Group, kinds: Sequence[Kind | None], number: int, *stretch: Any
    ) -> Piece:
        file, kind = group.files[number], kinds[number]
        assert kind is not None, "it was read"
        return Piece(file, self._sources[file], kind, *stretch)


def _packed(group: Group, piece: Piece) -> list[Any]:
    stretch = [piece.start, piece.end, piece.starts_at_anchor, piece.ends_file, piece.size]
    return [group.files.index(piece.file), *stretch]
