"""A batch -> the sum of its token losses, and no logits but those of a few hundred tokens.

A sum, not the model's own mean: a step's micro-batches hold different numbers of target tokens,
and the mean of their means would weigh a token by the company it happens to be in.

The logits of 8 rows of 2,048 target tokens over 32,128 pieces are 2 GB in float32, and a plain
loss keeps them three times: logits, log-probabilities, gradient. Here the positions that have a
label, and no padding, go through the output matrix a chunk at a time. Each chunk leaves its share
of the gradient after it at once, so that nothing of it is kept or computed again.

torch's own ``F.linear_cross_entropy`` (2.13) does the same in float32, to the last bits; but it
leaves autocast alone, returns bfloat16 given bfloat16, and knows no label smoothing: not used.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from pipeline.fit.data.collate import IGNORED
from pipeline.fit.model.families import logit_cap

T = TypeVar("T")
CPU_CHUNK = 64 * 1024**2
"""Bytes of a chunk's logits in float32; a quarter of it takes half as long again in bfloat16."""
GPU_CHUNK = 512 * 1024**2
"""The same on a GPU, which wants large matrix products: each adds to the whole weight gradient."""

_HEAD_IS_LAST = frozenset(
    {"t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma", "t5gemma2", "bart"}
)
"""Models whose logits are what their output matrix gives, with no more than a cap or a constant."""
Change = tuple[float | None, torch.Tensor | None]
"""What becomes of logits: their cap, and what is added to them, [1, V]."""


class SummedTokenLoss(nn.Module):
    """A model together with its loss: what is trained, wrapped and sharded is this.

    The loss is inside, because DistributedDataParallel makes gradients ready from the output of
    the module that it wraps, and the weights of the output matrix are used here alone.

    Args:
        model: An encoder-decoder; its config names the start and padding ids.
        label_smoothing: Share of each target's probability that is spread over the vocabulary, as
            in transformers' ``LabelSmoother``; while training alone.
        chunk_bytes: See ``summed_cross_entropy``.
    """

    def __init__(
        self, model: Any, label_smoothing: float = 0.0, *, chunk_bytes: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.label_smoothing, self._chunk_bytes = model, label_smoothing, chunk_bytes

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the sum over all labels but -100 of -log p(label).

        Args:
            input_ids: [B, S].
            attention_mask: [B, S].
            labels: [B, T].
            targets: What ``target_positions(labels)`` gives, where it is known already.

        Returns:
            A float32 scalar. Where every label is -100 it is zero, and so is every gradient.
        """
        if targets is None:
            targets = target_positions(labels)
        states = self._states(input_ids, attention_mask, labels, targets)
        return self._summed(states, labels.flatten()[targets])

    def with_model(self, use: Callable[[Any], T]) -> T:
        """Return what something returns, given the model; of a sharded one, its root is gathered.

        This is the way to any pass but ``forward``.
        """
        return use(self.model)

    def row_losses(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of each row by itself, float32[B]; arguments as of ``forward``."""
        targets = target_positions(labels)
        states = self._states(input_ids, attention_mask, labels, targets)
        counts = labels.ne(IGNORED).sum(dim=1).tolist()
        wanted = torch.split(labels.flatten()[targets], counts)
        return torch.stack(
            [self._summed(*row) for row in zip(torch.split(states, counts), wanted, strict=True)]
        )

    def _states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Return what the head gets at the targets [N, D], or what it gives [N, V]."""
        config = self.model.config
        start, pad = config.decoder_start_token_id, config.pad_token_id
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": shift_right(labels, start, pad),
            "use_cache": False,
        }
        if not is_chunked(self.model):
            return _at(self.model(**inputs).logits, targets)
        with _head_input(self.model.get_output_embeddings()) as hidden:
            self.model(**inputs)
        return _at(hidden[0], targets)

    def _summed(self, states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return the loss of what ``_states`` returns and its labels [N]."""
        smoothing = self.label_smoothing if self.training else 0.0
        if not is_chunked(self.model):
            return F.cross_entropy(
                states.float(), wanted, reduction="sum", label_smoothing=smoothing
            )
        weight = self.model.get_output_embeddings().weight
        change = logit_cap(self.model.config), getattr(self.model, "final_logits_bias", None)
        return summed_cross_entropy(states, weight, wanted, smoothing, change, self._chunk_bytes)


def is_chunked(model: Any) -> bool:
    """Return whether a model's loss is worked out without all of its logits."""
    bias = getattr(model.get_output_embeddings(), "bias", None)
    return model.config.model_type in _HEAD_IS_LAST and bias is None


def target_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return where in the flattened labels [B, T] there is one: int64[N].

    On a GPU the processor has to wait for the number of them; better call it before the transfer.

    >>> target_positions(torch.tensor([[7, 1, -100], [9, -100, -100]])).tolist()
    [0, 1, 3]
    """
    return labels.flatten().ne(IGNORED).nonzero().squeeze(1)


def shift_right(labels: torch.Tensor, start_id: int, pad_id: int) -> torch.Tensor:
    """Return the decoder's input for labels [B, T]: the start token, then all but the last.

    >>> shift_right(torch.tensor([[7, 8, 1], [9, 1, -100]]), 0, 0).tolist()
    [[0, 7, 8], [0, 9, 1]]
    """
    shifted = torch.full_like(labels, start_id)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == IGNORED, pad_id)


def summed_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float = 0.0,
    change: Change = (None, None),
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """Return the cross-entropy of ``hidden @ weight.T``, summed, a chunk of rows at a time.

    Matrix products are in autocast's type where it is on; softmax and sums, those of the chunks'
    gradients of the weight too, are in float32.

    Args:
        hidden: [N, D].
        weight: [V, D].
        labels: int64[N], each below V.
        smoothing: Share of a label's probability that is spread over all V.
        change: See ``families.logit_cap``; and a constant, such as BART's.
        chunk_bytes: Of a chunk's logits in float32; None: what suits the device.
    """
    if chunk_bytes is None:
        chunk_bytes = CPU_CHUNK if hidden.device.type == "cpu" else GPU_CHUNK
    rows = max(1, chunk_bytes // (4 * len(weight)))
    if not torch.is_grad_enabled():
        return _chunked(hidden, weight, labels, smoothing, change, rows)
    loss: torch.Tensor = _SummedCrossEntropy.apply(hidden, weight, labels, smoothing, change, rows)  # type: ignore[no-untyped-call]
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    """Computes the gradients with the loss; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        smoothing: float,
        change: Change,
        rows: int,
    ) -> torch.Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        loss = _chunked(hidden, weight, labels, smoothing, change, rows, grad_hidden, grad_weight)
        ctx.gradients = grad_hidden, grad_weight
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place, and let go of: a copy of the weight's would be the largest tensor of the step.
        gradients = ctx.gradients
        del ctx.gradients
        hidden, weight = (None if each is None else each.mul_(grad) for each in gradients)
        return hidden, weight, None, None, None, None


def _chunked(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    change: Change,
    rows: int,
    grad_hidden: torch.Tensor | None = None,
    grad_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss, worked out so many ``rows`` at a time.

    Where they are given, ``grad_hidden`` is set and ``grad_weight`` added to.
    """
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    # Off, for it would cast the weight anew in each chunk.
    with torch.autocast(device, enabled=False):
        matrix = weight.to(dtype)
        for start in range(0, len(hidden), rows):
            chunk = hidden[start : start + rows].to(dtype)
            label = labels[start : start + rows, None]
            log_p, slope = _log_softmax(chunk @ matrix.T, change)  # [rows, V]
            loss -= (1 - smoothing) * log_p.gather(1, label).sum()
            if smoothing:
                loss -= smoothing / len(weight) * log_p.sum()
            if grad_hidden is None and grad_weight is None:
                continue
            less = torch.full_like(label, smoothing - 1, dtype=torch.float32)
            grad = log_p.exp_().scatter_add_(1, label, less)  # softmax less the target
            grad = grad.sub_(smoothing / len(weight)) if smoothing else grad
            grad = (grad if slope is None else grad.mul_(slope)).to(dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = grad @ matrix
            if grad_weight is not None:
                _add_product(grad_weight, grad.T, chunk)
    return loss


def _log_softmax(logits: torch.Tensor, change: Change) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the logarithms in float32, and what the cap multiplies the logits' gradient by."""
    cap, added = change
    if added is not None:
        logits = logits + added
    if cap is None:
        return F.log_softmax(logits, dim=-1, dtype=torch.float32), None
    bent = logits.float().div_(cap).tanh_()
    log_p = F.log_softmax(bent * cap, dim=-1)
    return log_p, bent.square_().neg_().add_(1)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _at(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the rows of [B, T, D] at positions of the flattened [B * T]: [N, D]."""
    return values.flatten(0, 1).index_select(0, positions)


@contextlib.contextmanager
def _head_input(head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Keep what the output layer gets, [B, T, D], and let it give a single logit."""
    seen: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        return hidden.new_zeros(1, 1, 1)

    head.forward = keep
    try:
        yield seen
    finally:
        del head.forward  # that of its class is there again
