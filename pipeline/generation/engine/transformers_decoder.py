"""Answers written by a transformers model, one id at a time for all of them.

A batch is its encoder states, the cache of keys and values, and masks. Between steps rows leave
it, and in models whose positions are relative (T5 and its like) others join it: their cache is
padded on the left, and the mask hides it. Beams are left to transformers' ``generate``.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from pipeline.generation.engine.answer import Answer
from pipeline.generation.engine.sampling import next_ids

_RELATIVE = frozenset({"t5", "mt5", "umt5"})
"""Models in which a padded beginning moves no position."""
_ENCODER_BYTES = 256 * 1024**2
"""What attention may take while the sources of new rows are encoded, by its largest tensor."""


@dataclass(slots=True)
class _Batch:
    """Rows that are being written: B of them, sources up to S ids, answers up to T."""

    answers: list[Answer]
    states: torch.Tensor
    """The encoder's output, [B, S, D]."""
    source_mask: torch.Tensor
    """int64[B, S]."""
    written_mask: torch.Tensor
    """int64[B, T + 1]: 0 where a row's answer began later; the last is for the next id."""
    cache: Any
    """Keys and values: self-attention [B, H, T, K] a layer, cross-attention [B, H, S, K]."""
    last: torch.Tensor
    """The ids to continue from, int64[B, 1]."""

    def layers(self) -> list[tuple[Any, Any]]:
        """Return each layer's caches: of self- and of cross-attention."""
        own, cross = self.cache.self_attention_cache, self.cache.cross_attention_cache
        return list(zip(own.layers, cross.layers, strict=True))


class TransformersDecoder:
    """Writes answers with an encoder-decoder of transformers.

    Args:
        model: In evaluation mode, on its device.
        max_rows: Most answers at once.
        max_tokens: Most tokens at once, padding counted.
    """

    def __init__(self, model: Any, *, max_rows: int, max_tokens: int) -> None:
        self.model, self.max_rows, self.max_tokens = model, max_rows, max_tokens
        self.can_join = model.config.model_type in _RELATIVE
        generation = model.generation_config
        self._start_id: int = model.config.decoder_start_token_id
        self._first_id: int | None = generation.forced_bos_token_id
        self._pad_id: int = model.config.pad_token_id or 0
        self._batch: _Batch | None = None
        self._beams: list[Answer] = []

    @property
    def running(self) -> list[Answer]:
        """The answers that are being written."""
        return self._batch.answers if self._batch is not None else self._beams

    def group(self, answer: Answer) -> Hashable:
        """Return what must be alike: nothing, but for beams."""
        sampling = answer.sampling
        if sampling.num_beams == 1:
            return "steps"
        return sampling.num_beams, sampling.max_new_tokens, sampling.repetition_penalty

    @torch.inference_mode()
    def admit(self, answers: Sequence[Answer]) -> None:
        """Encode the sources of some answers and write their first ids."""
        if answers[0].sampling.num_beams > 1:
            self._beams = list(answers)
            return
        ordered = sorted(answers, key=lambda answer: len(answer.source))
        while ordered:
            rows = self._rows_at_once(ordered)
            batch = self._begin(ordered[:rows])
            self._batch = batch if self._batch is None else _merged(self._batch, batch)
            ordered = ordered[rows:]

    @torch.inference_mode()
    def step(self) -> None:
        """Write the next id of each answer; of beams, the whole answers."""
        if self._batch is not None:
            self._forward(self._batch)
        elif self._beams:
            self._search()

    def tidy(self) -> None:
        """Drop the rows that are finished or cancelled."""
        self._beams = [a for a in self._beams if a.finish_reason is None]
        if self._batch is None:
            return
        for answer in self._batch.answers:
            if answer.is_cancelled:
                answer.end("cancelled")
        kept = [i for i, a in enumerate(self._batch.answers) if a.finish_reason is None]
        if len(kept) == len(self._batch.answers):
            return
        with torch.inference_mode():
            self._batch = _selected(self._batch, kept, trim=self.can_join) if kept else None

    def _rows_at_once(self, answers: Sequence[Answer]) -> int:
        """Return how many of some answers, shortest first, are encoded together."""
        heads = getattr(self.model.config, "num_heads", None) or 16
        rows = 1
        while rows < len(answers):
            longest = len(answers[rows].source)
            if (rows + 1) * heads * longest * longest * 4 > _ENCODER_BYTES:
                break
            rows += 1
        # Without the encoder's own tensors: cross-attention's keys are of all rows alike.
        return rows

    def _begin(self, answers: list[Answer]) -> _Batch:
        ids, mask = self._padded(answers)
        states = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        start = torch.full((len(answers), 1), self._start_id, device=ids.device)
        batch = _Batch(
            answers=answers,
            states=states,
            source_mask=mask,
            written_mask=torch.ones_like(start),
            # Layers with a sliding window slide over what is written, never over the source.
            cache=EncoderDecoderCache(DynamicCache(config=self.model.config), DynamicCache()),
            last=start,
        )
        self._forward(batch)
        return batch

    def _padded(self, answers: Sequence[Answer]) -> tuple[torch.Tensor, torch.Tensor]:
        sources = [torch.as_tensor(answer.source, dtype=torch.int64) for answer in answers]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(sources, batch_first=True, padding_value=self._pad_id)
        mask = pad([torch.ones_like(s) for s in sources], batch_first=True)
        device = self.model.device
        return ids.to(device), mask.to(device)

    def _forward(self, batch: _Batch) -> None:
        """Write one id of each row of a batch."""
        output = self.model(
            encoder_outputs=_encoder_output(batch.states),
            attention_mask=batch.source_mask,
            decoder_input_ids=batch.last,
            decoder_attention_mask=batch.written_mask,
            past_key_values=batch.cache,
            use_cache=True,
        )
        logits = output.logits[:, -1].float()
        ids = next_ids(logits, batch.answers, self._start_id)
        for row, answer in enumerate(batch.answers):
            if not answer.ids and self._first_id is not None:
                ids[row] = self._first_id
            if not answer.is_cancelled:
                answer.add(ids[row])
        batch.last = torch.tensor(ids, device=logits.device)[:, None]
        batch.written_mask = F.pad(batch.written_mask, (0, 1), value=1)

    def _search(self) -> None:
        """Write whole answers by beam search; a cancelled one is written with the others."""
        from transformers import StoppingCriteriaList

        answers, first = self._beams, self._beams[0].sampling
        ids, mask = self._padded(answers)

        def nobody_waits(written: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            is_over = all(answer.is_cancelled for answer in answers)
            return torch.full((len(written),), is_over, device=written.device)

        criteria: Any = StoppingCriteriaList([nobody_waits])
        output = self.model.generate(
            ids,
            attention_mask=mask,
            num_beams=first.num_beams,
            do_sample=False,
            max_new_tokens=first.max_new_tokens,
            repetition_penalty=first.repetition_penalty,
            stopping_criteria=criteria,
        )
        for answer, row in zip(answers, output[:, 1:].tolist(), strict=True):
            if answer.is_cancelled:
                answer.end("cancelled")
            for token in row:
                if answer.add(token):
                    break
            answer.end("length")
        self._beams = []


def _encoder_output(states: torch.Tensor) -> Any:
    """Return encoder states as models take them; those with experts ask for a router's, too."""
    output: Any = BaseModelOutput(last_hidden_state=states)
    output.router_logits = None
    return output


def _merged(one: _Batch, other: _Batch) -> _Batch:
    """Return both batches as one; the caches are those of the first, changed."""
    length = max(one.source_mask.shape[1], other.source_mask.shape[1])
    written = max(one.written_mask.shape[1], other.written_mask.shape[1])

    def right(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
        return _pad(tensor, dim, 0, size - tensor.shape[dim])

    def left(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
        return _pad(tensor, dim, size - tensor.shape[dim], 0)

    for (own, cross), (own2, cross2) in zip(one.layers(), other.layers(), strict=True):
        # Written so far is one less: the last place of the mask is for the next id.
        own.keys = torch.cat([left(k, 2, written - 1) for k in (own.keys, own2.keys)])
        own.values = torch.cat([left(v, 2, written - 1) for v in (own.values, own2.values)])
        cross.keys = torch.cat([right(k, 2, length) for k in (cross.keys, cross2.keys)])
        cross.values = torch.cat([right(v, 2, length) for v in (cross.values, cross2.values)])
    both = (one, other)
    return _Batch(
        answers=one.answers + other.answers,
        states=torch.cat([right(b.states, 1, length) for b in both]),
        source_mask=torch.cat([right(b.source_mask, 1, length) for b in both]),
        written_mask=torch.cat([left(b.written_mask, 1, written) for b in both]),
        cache=one.cache,
        last=torch.cat([b.last for b in both]),
    )


def _pad(tensor: torch.Tensor, dim: int, before: int, after: int) -> torch.Tensor:
    if not (before or after):
        return tensor
    return F.pad(tensor, [0, 0] * (tensor.dim() - 1 - dim) + [before, after])


def _selected(batch: _Batch, rows: list[int], *, trim: bool) -> _Batch:
    """Return some rows of a batch, without the padding that only the others needed."""
    index = torch.tensor(rows, device=batch.last.device)
    source_mask, written_mask = batch.source_mask[index], batch.written_mask[index]
    length = int(source_mask.sum(dim=1).max())
    start = int(written_mask.shape[1] - written_mask.sum(dim=1).max()) if trim else 0
    for own, cross in batch.layers():
        own.keys, own.values = (t[index, :, start:] for t in (own.keys, own.values))
        cross.keys, cross.values = (t[index, :, :length] for t in (cross.keys, cross.values))
    return _Batch(
        answers=[batch.answers[row] for row in rows],
        states=batch.states[index, :length],
        source_mask=source_mask[:, :length],
        written_mask=written_mask[:, start:],
        cache=batch.cache,
        last=batch.last[index],
    )
