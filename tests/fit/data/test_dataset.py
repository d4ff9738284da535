"""Rows come out of a prepared folder as they were put in, in any order, in any process."""

import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError, PreparedFolderError
from pipeline.fit.data.dataset import ListColumn, SupervisedDataset
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import make_rows, write_prepared


def as_lists(dataset: SupervisedDataset) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in dataset]


def test_rows_are_those_written_over_several_batches_and_shards(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    rows = make_rows(tokenizer, 25, 3)
    folder = write_prepared(
        tmp_path / "p", tokenizer, {"train": rows}, rows_per_batch=3, batches_per_shard=3
    )
    assert len(list((folder / "train").glob("*.arrow"))) > 2
    dataset = SupervisedDataset(folder)
    assert as_lists(dataset) == rows
    other = datasets.load_from_disk(str(folder))["train"]
    assert as_lists(dataset) == [(row["input_ids"], row["labels"]) for row in other]


def test_a_row_is_int64_tensors(prepared: Path) -> None:
    row = SupervisedDataset(prepared)[0]
    assert {name: value.dtype for name, value in row.items()} == {
        "input_ids": torch.int64,
        "labels": torch.int64,
    }


def test_ids_beyond_uint16_come_out_whole(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [([70_000, 1], [69_999, 1])]
    folder = write_prepared(tmp_path / "p", tokenizer, {"train": rows}, vocab_size=70_001)
    assert as_lists(SupervisedDataset(folder)) == rows


def test_negative_indices_and_rows_that_are_not_there(prepared: Path) -> None:
    dataset = SupervisedDataset(prepared)
    assert torch.equal(dataset[-1]["labels"], dataset[19]["labels"])
    assert torch.equal(dataset[-20]["labels"], dataset[0]["labels"])
    for index in (20, -21):
        with pytest.raises(IndexError, match=f"row {index} of 20"):
            dataset[index]


def test_lengths_are_those_of_the_rows(prepared: Path) -> None:
    dataset = SupervisedDataset(prepared)
    encoder, decoder = dataset.lengths
    assert encoder.dtype == decoder.dtype == np.int64
    assert encoder.tolist() == [len(row["input_ids"]) for row in dataset]
    assert decoder.tolist() == [len(row["labels"]) for row in dataset]


def test_num_rows_takes_the_first(prepared: Path) -> None:
    some, every = SupervisedDataset(prepared, num_rows=9), SupervisedDataset(prepared)
    assert len(some) == 9
    assert as_lists(some) == as_lists(every)[:9]
    assert len(some.lengths[0]) == 9
    assert len(SupervisedDataset(prepared, num_rows=99)) == 20
    with pytest.raises(IndexError):
        some[9]
    with pytest.raises(ConfigError, match="out of range"):
        SupervisedDataset(prepared, num_rows=0)


def test_a_sliced_chunk_is_read_at_its_own_offsets() -> None:
    chunks = [
        pa.array([[1], [2, 3], [4]]).slice(1),
        pa.array([], pa.list_(pa.int64())),
        pa.array([[5, 6]]),
    ]
    column = ListColumn(chunks)
    assert [column[i].tolist() for i in range(3)] == [[2, 3], [4], [5, 6]]
    assert column.lengths().tolist() == [2, 1, 2]


def test_it_crosses_process_boundaries(prepared: Path) -> None:
    dataset = SupervisedDataset(prepared, "eval", num_rows=4)
    copied = pickle.loads(pickle.dumps(dataset))
    assert as_lists(copied) == as_lists(dataset)
    assert len(pickle.dumps(dataset)) < 1000


@pytest.mark.slow
def test_workers_of_a_data_loader_read_it(prepared: Path) -> None:
    dataset = SupervisedDataset(prepared, num_rows=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert [row["labels"].tolist() for row in loader] == [row["labels"].tolist() for row in dataset]


def test_faults_of_the_folder_are_named(prepared: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(PreparedFolderError, match="no such prepared folder"):
        SupervisedDataset(tmp_path / "none")
    with pytest.raises(PreparedFolderError, match="no such split"):
        SupervisedDataset(prepared, "test")
    folder = shutil.copytree(prepared, tmp_path / "copy")
    shard = next((folder / "train").glob("*.arrow"))
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(PreparedFolderError, match="shard"):
        SupervisedDataset(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(PreparedFolderError, match="not a complete one"):
        SupervisedDataset(folder)


def test_offsets_that_were_overwritten_are_found_on_opening(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    rows = [([5] * 300, [1]), ([6] * 300, [1]), ([7] * 300, [1])]
    folder = write_prepared(tmp_path / "p", tokenizer, {"train": rows})
    shard = next((folder / "train").glob("*.arrow"))
    offsets = np.array([0, 300, 600, 900], np.int32)
    for wrong in (np.array([0, 300, 100, 900]), np.array([0, 300, 600, 1 << 20])):
        content = shard.read_bytes()
        assert content.count(offsets.tobytes()) == 1
        shard.write_bytes(content.replace(offsets.tobytes(), wrong.astype(np.int32).tobytes()))
        with pytest.raises(PreparedFolderError, match="damaged") as caught:
            SupervisedDataset(folder)
        assert "\n" not in str(caught.value)
        assert "input_ids: " in caught.value.got
        shard.write_bytes(content)
    SupervisedDataset(folder).check_ids(8)
    with pytest.raises(PreparedFolderError, match="damaged") as caught:
        SupervisedDataset(folder).check_ids(7)
    assert caught.value.got == "input_ids from 5 to 7, the vocabulary has 7"
