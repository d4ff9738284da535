"""Logits and labels -> the sum of the token losses.

A sum, not the model's own mean: a step's micro-batches hold different numbers of target tokens,
and the mean of their means would weigh a token by the company it happens to be in.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.fit.collate import IGNORED, Batch


def summed_token_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the sum over all labels but -100 of -log p(label).

    Args:
        model: An encoder-decoder, wrapped or not; its config names the start and padding ids.
        batch: ``input_ids`` and ``attention_mask`` [B, S], ``labels`` [B, T].

    Returns:
        A float32 scalar. Where every label is -100 it is zero, and so is every gradient.
    """
    config = _config_of(model)
    labels = batch["labels"]
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=shift_right(labels, config.decoder_start_token_id, config.pad_token_id),
        use_cache=False,
    ).logits  # [B, T, V]
    return F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def shift_right(labels: torch.Tensor, start_id: int, pad_id: int) -> torch.Tensor:
    """Return the decoder's input for labels [B, T]: the start token, then all but the last.

    >>> shift_right(torch.tensor([[7, 8, 1], [9, 1, -100]]), 0, 0).tolist()
    [[0, 7, 8], [0, 9, 1]]
    """
    shifted = torch.full_like(labels, start_id)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == IGNORED, pad_id)


def _config_of(model: torch.nn.Module) -> Any:
    # DistributedDataParallel does not pass attributes on.
    return model.config if hasattr(model, "config") else model.module.config  # type: ignore[union-attr]
