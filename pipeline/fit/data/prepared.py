"""The prepared folder of a run: opened, and its rows checked against what was written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import FitConfig
from pipeline.console.progress import Wait
from pipeline.errors import ConfigError, PreparedFolderError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.mixture import Mixture, Source, check_same_tokenizer, open_mixture
from pipeline.store.fingerprint import sha256_of_file
from pipeline.store.manifest import read_manifest
from pipeline.tokenizer import TextTokenizer, load_tokenizer

MOST_HASHED = 2 * 1000**3
"""Bytes of shards whose hashes are checked before a run: a few seconds. Of more, only the ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """An open prepared folder."""

    train: SupervisedDataset
    eval: SupervisedDataset | None
    """None where there is no eval split, or no row in it."""
    tokenizer: TextTokenizer
    named_eval: Mapping[str, SupervisedDataset] = field(default_factory=dict)
    """What ``--eval-data-path`` names."""

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files are."""
        return self.train.path / "tokenizer"

    @property
    def has_chosen_template(self) -> bool:
        """Whether the rows' template was asked for, whatever the model's is."""
        return self.train.manifest.config.get("chat_template") == "duet"

    @property
    def longest_rows(self) -> tuple[int, int]:
        """Tokens of the longest encoder row, and of the longest decoder row."""
        datasets = [each for each in (self.train, self.eval, *self.named_eval.values()) if each]
        encoder, decoder = (max(int(each.lengths[i].max()) for each in datasets) for i in (0, 1))
        return encoder, decoder

    @property
    def target_length(self) -> int:
        """Most tokens of an answer in the training."""
        settings = self.train.manifest.config
        length = settings.get("max_target_length") or settings.get("model_max_length")
        return int(length or self.train.lengths[1].max())

    @property
    def eval_rows(self) -> int:
        """Rows to evaluate on; 0 where there is no split, and no other folder."""
        own = len(self.eval) if self.eval is not None else 0
        return own + sum(map(len, self.named_eval.values()))


def open_data(config: FitConfig) -> PreparedData:
    """Open the prepared folders that a run trains and evaluates on.

    Raises:
        PreparedFolderError, TokenizerError: It is missing, incomplete or damaged.
        ConfigError: It was cut to another length, or prepared with another tokenizer than a folder
            to evaluate on.
    """
    num_rows = None if config.num_data < 1 else config.num_data
    train = open_mixture([Source.parse(text) for text in config.data_path], num_rows=num_rows)
    prepared = train.manifest.config.get("model_max_length")
    if config.model_max_length not in (None, prepared):
        raise ConfigError(
            "the data was prepared with another length",
            where="--model-max-length",
            got=f"{config.model_max_length}, prepared with {prepared}",
            do="leave it out, or run duet prepare with this length",
        )
    has_eval = train.manifest.rows("eval") > 0
    return PreparedData(
        train=train,
        eval=SupervisedDataset(train.path, "eval") if has_eval else None,
        tokenizer=load_tokenizer(str(train.path / "tokenizer")),
        named_eval={
            name: _open_eval(Path(folder), train) for name, folder in config.eval_folders.items()
        },
    )


def _open_eval(folder: Path, train: SupervisedDataset) -> SupervisedDataset:
    """Open the eval split of another folder; where it has none, all of its rows."""
    split = "eval" if read_manifest(folder).rows("eval") > 0 else "train"
    dataset = SupervisedDataset(folder, split)
    check_same_tokenizer(train, dataset, where="--eval-data-path")
    return dataset


def check_shards(data: PreparedData, *, most_hashed: int = MOST_HASHED) -> None:
    """Refuse rows that are not those that the first stage wrote.

    Of more bytes than ``most_hashed`` only the ids are checked, not the hashes.
    """
    train = data.train.parts if isinstance(data.train, Mixture) else [data.train]
    opened = [part for part in (*train, data.eval, *data.named_eval.values()) if part is not None]
    shards = [
        (part.path / shard.path, shard)
        for part in opened
        for shard in part.manifest.shards
        if shard.split == part.split
    ]
    size = sum(shard.bytes for _, shard in shards)
    if size > most_hashed:
        with Wait("checking the prepared rows", unit="folders") as wait:
            for part in wait.each(opened):
                part.check_ids(data.tokenizer.vocab_size)
        return
    with Wait("checking the prepared rows", size, "bytes"):
        for path, shard in shards:
            _check_shard(path, shard.sha256)


def _check_shard(path: Path, expected: str) -> None:
    found = sha256_of_file(path)
    if found != expected:
        raise PreparedFolderError(
            "a shard is damaged",
            where=path,
            got=f"SHA-256 {found[:12]}…, not {expected[:12]}…",
            do="run duet prepare again",
        )
