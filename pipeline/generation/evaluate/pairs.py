"""The pairs that are judged: rows of a prepared folder, or of data prepared for a model."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from pipeline.config import PrepareConfig
from pipeline.console.logs import note
from pipeline.console.units import counted
from pipeline.errors import ModelError, PreparedFolderError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.generation.config import EvalConfig
from pipeline.generation.model import TrainedModel
from pipeline.prepare.stage import find_or_make
from pipeline.store.manifest import FILENAME, read_manifest
from pipeline.store.shards import open_split
from pipeline.tokenizer import TextTokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows of a data set, and what they are grouped and aligned by."""

    dataset: SupervisedDataset
    rows: npt.NDArray[np.int64]
    conversations: list[str]
    turns: list[int]
    """Index of each answer in its conversation."""
    references: list[str]

    def keys(self) -> list[tuple[str, int]]:
        """Return what tells a pair from the others, whatever tokenizer made it."""
        return list(zip(self.conversations, self.turns, strict=True))

    def only(self, places: Sequence[int]) -> "Pairs":
        """Return some of them, in the order given."""
        return Pairs(
            dataset=self.dataset,
            rows=self.rows[list(places)],
            conversations=[self.conversations[i] for i in places],
            turns=[self.turns[i] for i in places],
            references=[self.references[i] for i in places],
        )


@contextlib.contextmanager
def opened_pairs(config: EvalConfig, model: TrainedModel) -> Iterator[Pairs]:
    """Open the pairs for a model.

    Raises:
        PreparedFolderError: The folder is damaged, or has no such split.
        ModelError: Its rows were made with another tokenizer than the model's.
        InputError: Data cannot be read, or hold no pair.
    """
    folder = Path(config.data_path[0])
    if len(config.data_path) == 1 and (folder / FILENAME).is_file():
        tokenizer = load_tokenizer(str(folder / "tokenizer"))
        if tokenizer.backend.get_vocab() != model.tokenizer.backend.get_vocab():
            raise ModelError(
                "the data were prepared for another model",
                where=model.name,
                got="another vocabulary than that of the prepared folder",
                do="give the conversations themselves as --data-path",
            )
        yield _read(folder, config.split, tokenizer)
        return
    with TemporaryDirectory(prefix="duet-eval-") as temporary:
        length = model.source.model_max_length
        prepared = find_or_make(
            PrepareConfig(
                data_path=config.data_path,
                model_name_or_path=model.tokenizer_folder,
                output_dir=temporary,
                model_max_length=length,
                max_target_length=min(model.target_length, length),
            )
        )
        counts = read_manifest(prepared).counts
        pairs, records = counted(counts["pairs"], "pair"), counted(counts["records"], "record")
        note(f"{model.name}: {pairs} in {records}, {counts['rejected']:,} of them rejected")
        yield _read(prepared, "train", model.tokenizer)


def _read(folder: Path, split: str, tokenizer: TextTokenizer) -> Pairs:
    manifest = read_manifest(folder)
    if not manifest.rows(split):
        raise PreparedFolderError(
            "no pairs to evaluate on",
            where=folder,
            got=f"splits {', '.join(manifest.splits())}",
            do="give --split train, or prepare with --eval-fraction 0.01",
        )
    dataset = SupervisedDataset(folder, split)
    table = open_split(folder, manifest, split).select(["conversation_id", "turn"])
    return Pairs(
        dataset=dataset,
        rows=np.arange(len(dataset), dtype=np.int64),
        conversations=table.column("conversation_id").to_pylist(),
        turns=table.column("turn").to_pylist(),
        references=[tokenizer.decode(dataset[i]["labels"].tolist()) for i in range(len(dataset))],
    )
