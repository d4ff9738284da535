"""Logits to the next id of each row, each row with settings and draws of its own.

The filters are those of transformers' logits processors, for rows that differ: a test compares
them. The draw is one number between 0 and 1 from the answer's own generator, looked up in the
running sum of the probabilities; so an answer is the same alone and in any batch, but for rounding:
in 6,900 draws from 2,100 tokens one fell on the other side of a bound.
"""

from collections.abc import Sequence

import torch

from pipeline.generation.engine.answer import Answer

_CANDIDATES = 256
"""Sorting all of a vocabulary takes longer than a step of a small model; these are nearly always
enough for top_p."""


def next_ids(logits: torch.Tensor, answers: Sequence[Answer], start_id: int) -> list[int]:
    """Return the next id of each row.

    Args:
        logits: [B, V], changed in place.
        answers: What each of the B rows belongs to.
        start_id: What the decoder starts with: it counts as written, as in transformers.
    """
    for row, answer in enumerate(answers):
        if answer.sampling.repetition_penalty != 1.0:
            _penalize(logits[row], [start_id, *answer.ids], answer.sampling.repetition_penalty)
    ids: list[int] = logits.argmax(dim=-1).tolist()
    drawn = [row for row, answer in enumerate(answers) if answer.sampling.temperature > 0]
    filtered = [row for row in drawn if _is_filtered(answers[row])]
    if plain := [row for row in drawn if row not in filtered]:
        some = [answers[row] for row in plain]
        for row, place in zip(plain, _draw(_probabilities(logits[plain], some), some), strict=True):
            ids[row] = place
    if filtered:
        some = [answers[row] for row in filtered]
        kept, candidates = keep_likeliest(_probabilities(logits[filtered], some), some)
        for row, place, own in zip(filtered, _draw(kept, some), candidates, strict=True):
            ids[row] = int(own[place])
    return ids


def _is_filtered(answer: Answer) -> bool:
    return answer.sampling.top_k > 0 or answer.sampling.top_p < 1.0


def _penalize(logits: torch.Tensor, written: list[int], penalty: float) -> None:
    """Make what was written less likely, in place: logits [V]."""
    ids = torch.tensor(sorted(set(written)), device=logits.device)
    values = logits[ids]
    logits[ids] = torch.where(values < 0, values * penalty, values / penalty)


def _probabilities(logits: torch.Tensor, answers: Sequence[Answer]) -> torch.Tensor:
    heat = torch.tensor([answer.sampling.temperature for answer in answers], device=logits.device)
    return torch.softmax(logits.float() / heat[:, None], dim=-1)


def keep_likeliest(
    probabilities: torch.Tensor, answers: Sequence[Answer]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities that top_k and top_p leave, likeliest first, and their ids.

    Args:
        probabilities: [B, V].
        answers: B.

    Returns:
        float[B, N], zero where left out and not scaled again; int64[B, N].
    """
    device, vocabulary = probabilities.device, probabilities.shape[1]
    top_k = [answer.sampling.top_k or vocabulary for answer in answers]
    limits = torch.tensor(top_k, device=device)[:, None]
    # top_p is a share of what top_k leaves, as in transformers, where it comes after it.
    top_p = torch.tensor([answer.sampling.top_p for answer in answers], device=device)[:, None]
    for size in (min(_CANDIDATES, vocabulary), vocabulary):
        kept, ids = probabilities.topk(size, dim=-1)
        kept = kept.masked_fill(torch.arange(size, device=device)[None] >= limits, 0.0)
        # Of all probabilities where there is no top_k.
        total = torch.where(limits <= size, kept.sum(dim=-1, keepdim=True), 1.0)
        before = kept.cumsum(dim=-1) - kept
        reached = (limits == vocabulary) & (before[:, -1:] + kept[:, -1:] >= top_p)
        is_enough = (limits <= size) | reached
        if size == vocabulary or bool(is_enough.all()):
            break
    is_left_out = before >= top_p * total
    is_left_out[:, 0] = False
    return kept.masked_fill(is_left_out, 0.0), ids


def _draw(probabilities: torch.Tensor, answers: Sequence[Answer]) -> list[int]:
    """Return a place in each row, drawn by its probabilities."""
    sums = probabilities.double().cumsum(dim=-1)
    at = torch.tensor([a.random.random() for a in answers], dtype=torch.double)
    wanted = at.to(sums.device)[:, None] * sums[:, -1:]
    places = torch.searchsorted(sums, wanted, right=True)[:, 0]
    return places.clamp(max=probabilities.shape[1] - 1).tolist()
