"""A batch is padded on the right, and masked by lengths."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.errors import TokenizerError
from pipeline.fit.data.collate import DataCollatorForSupervisedDataset

ROWS = [{"input_ids": [5, 7, 1], "labels": [9]}, {"input_ids": [7], "labels": [8, 7, 1]}]


def test_the_whole_batch_literally() -> None:
    batch = DataCollatorForSupervisedDataset(SimpleNamespace(pad_token_id=7))(ROWS)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 7, 1], [7, 7, 7]],
        # The padding id within a row is attended to.
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[9, -100, -100], [8, 7, 1]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda ids: np.array(ids, np.uint16)])
def test_arrays_and_tensors_are_taken_too(make: type) -> None:
    collate = DataCollatorForSupervisedDataset(SimpleNamespace(pad_token_id=0))
    rows = [{name: make(ids) for name, ids in row.items()} for row in ROWS]
    for name, tensor in collate(rows).items():
        assert torch.equal(tensor, collate(ROWS)[name])
        assert tensor.dtype == torch.int64


def test_a_tokenizer_without_padding_is_refused() -> None:
    with pytest.raises(TokenizerError, match="no padding token"):
        DataCollatorForSupervisedDataset(SimpleNamespace(pad_token_id=None))
