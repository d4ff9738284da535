"""Several prepared folders -> one data set whose epochs take a share of each.

    --data-path A --data-path B=0.3  ->  all rows of A, and 3 in 10 of B's, others in each epoch

Rows are numbered through: those of A first, then those of B. Nothing is tokenized again. What an
epoch takes is a function of (seed, epoch) alone, so a resumed run takes the same.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import ConfigError
from pipeline.fit.data.dataset import COLUMNS, ListColumn, SupervisedDataset
from pipeline.fit.data.sampler import IntArray
from pipeline.tokenizer import template_of


class Source(NamedTuple):
    """A prepared folder, and the share of its rows that an epoch takes."""

    path: str
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Return what a ``--data-path`` names; a path that is there is that path.

        Raises:
            ConfigError: The share is not above 0, or above 1.

        >>> Source.parse("data/processed/4f2a=0.3")
        Source(path='data/processed/4f2a', share=0.3)
        """
        path, equals, share = text.rpartition("=")
        if not equals or Path(text).exists():
            return cls(text)
        try:
            found = cls(path, float(share))
        except ValueError:
            return cls(text)
        if not 0 < found.share <= 1:
            raise ConfigError(
                "a share of a prepared folder is out of range",
                where="--data-path",
                got=text,
                do="give PATH=SHARE, the share above 0 and at most 1",
            )
        return found


class Mixture(SupervisedDataset):
    """Data sets one after another as one; what a run sees of a ``SupervisedDataset``.

    Args:
        parts: The data sets, each with the share of its rows that an epoch takes.
    """

    def __init__(self, parts: Sequence[tuple[SupervisedDataset, float]]) -> None:
        self.parts = [part for part, _ in parts]
        self._shares = [share for _, share in parts]
        first = self.parts[0]
        self.path, self.split, self.num_rows = first.path, first.split, None
        self.manifest = first.manifest
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self._length = int(self._starts[-1])
        self.columns = {
            name: ListColumn(chunk for part in self.parts for chunk in part.columns[name].chunks)
            for name in COLUMNS
        }

    def __reduce__(self) -> tuple[object, ...]:
        return (Mixture, (list(zip(self.parts, self._shares, strict=True)),))

    @property
    def rows_per_epoch(self) -> int:
        """Rows that an epoch takes, the same number in each."""
        return sum(map(self._taken, range(len(self.parts))))

    def epoch_rows(self, seed: int, epoch: int) -> IntArray:
        """Return the rows of an epoch, ascending: of a share, others in each epoch."""
        random = np.random.default_rng([seed, epoch, 1])
        rows = []
        for number, part in enumerate(self.parts):
            drawn = np.arange(len(part))
            if self._shares[number] < 1:
                drawn = np.sort(random.permutation(len(part))[: self._taken(number)])
            rows.append(drawn + self._starts[number])
        return np.concatenate(rows).astype(np.int64)

    def conversation_ids(self, rows: Iterable[int]) -> list[str]:
        """Return the ids of the conversations that some rows are from."""
        places = [(int(np.searchsorted(self._starts, row, side="right")) - 1, row) for row in rows]
        return [
            self.parts[part].conversation_ids([int(row - self._starts[part])])[0]
            for part, row in places
        ]

    @property
    def fingerprint(self) -> str:
        """A name of what the rows are, with the share of each."""
        parts = zip(self.parts, self._shares, strict=True)
        return " + ".join(f"{part.manifest.fingerprint}={share:g}" for part, share in parts)

    def _taken(self, number: int) -> int:
        return max(round(self._shares[number] * len(self.parts[number])), 1)


def open_mixture(sources: Sequence[Source], *, num_rows: int | None = None) -> SupervisedDataset:
    """Open the split train of prepared folders; of one whole folder, the plain data set.

    Raises:
        PreparedFolderError: One is missing, incomplete or damaged.
        ConfigError: Two were prepared with another tokenizer or template, or ``num_rows``, how many
            of the first rows to take, is given for several.
    """
    if len(sources) == 1 and sources[0].share == 1:
        return SupervisedDataset(sources[0].path, "train", num_rows=num_rows)
    if num_rows is not None:
        raise ConfigError(
            "--num-data needs a single prepared folder",
            where="--num-data",
            got=num_rows,
            do="leave it out, and give each --data-path a share: PATH=0.3",
        )
    parts = [(SupervisedDataset(path, "train"), share) for path, share in sources]
    for part, _ in parts[1:]:
        check_same_tokenizer(parts[0][0], part, where="--data-path")
    return Mixture(parts)


def check_same_tokenizer(one: SupervisedDataset, other: SupervisedDataset, *, where: str) -> None:
    """Refuse two folders whose rows are not of one tokenizer and one template."""
    for what in (_pieces, _template):
        if what(one.path / "tokenizer") != what(other.path / "tokenizer"):
            raise ConfigError(
                "two prepared folders differ in tokenizer or template",
                where=f"{where} {other.path}",
                got=f"its {what.__name__[1:]} is not that of {one.path}",
                do="prepare both with the same --model-name-or-path",
            )


def _pieces(tokenizer: Path) -> bytes:
    return (tokenizer / "tokenizer.json").read_bytes()


def _template(tokenizer: Path) -> object:
    return template_of(str(tokenizer))
