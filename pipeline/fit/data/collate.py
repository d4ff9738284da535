"""Rows of different lengths -> one padded batch of tensors.

The mask comes from the lengths, not from the padding id: a row may hold that id itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import TokenizerError

IGNORED = -100
"""The label that no loss is taken on, as PyTorch and transformers have it."""

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class DataCollatorForSupervisedDataset:
    """Pads rows on the right to the longest of the batch.

    Args:
        tokenizer: Anything with a ``pad_token_id``.

    Raises:
        TokenizerError: It has none.

    >>> from types import SimpleNamespace
    >>> collate = DataCollatorForSupervisedDataset(SimpleNamespace(pad_token_id=0))
    >>> rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [8], "labels": [9, 9, 1]}]
    >>> for name, tensor in collate(rows).items():
    ...     print(name, tensor.tolist())
    input_ids [[5, 6, 1], [8, 0, 0]]
    attention_mask [[1, 1, 1], [1, 0, 0]]
    labels [[7, 1, -100], [9, 9, 1]]
    """

    tokenizer: Any

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise TokenizerError(
                "the tokenizer has no padding token",
                where="pad_token_id",
                got=None,
                do="set tokenizer.pad_token",
            )

    def __call__(self, instances: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of some rows.

        Args:
            instances: B rows, each with ``input_ids`` of any length up to S and ``labels`` of
                any length up to T: lists, arrays or tensors of integers.

        Returns:
            ``input_ids`` [B, S], ``attention_mask`` [B, S] and ``labels`` [B, T], all int64.
        """
        sources = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in instances]
        targets = [torch.as_tensor(row["labels"], dtype=torch.int64) for row in instances]
        ones = [torch.ones_like(source) for source in sources]
        return {
            "input_ids": _padded(sources, self.tokenizer.pad_token_id),
            "attention_mask": _padded(ones, 0),
            "labels": _padded(targets, IGNORED),
        }


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
