"""What another ``--model-max-length`` would cut and cost, as far as stored lengths can tell.

Rows lie on disk as they were cut to the window W. What a row lost is not there any more; how many
rows lost something is in the manifest, and of most of them ``rows.surely_cut`` tells which. So for
a window L:

    L < W   A row longer than L is cut, and one that was cut to W stays cut. Whole turns go, so that
            a cut row has L tokens at most.
    L > W   Rows that were not cut stay as they are; those that were cut grow to L at most.

The answers are known better: one that is longer than L is cut to L exactly.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.report.dataset.rows import IntArray, Lengths
from pipeline.store.manifest import Manifest

WINDOWS = (512, 768, 1024, 1536, 2048, 3072, 4096)

Flops = Callable[[Any, Any], Any]
"""Operations of rows of so many encoder and decoder tokens: see ``fit.flops.ModelFlops``."""


class Range(NamedTuple):
    """A number that is known, or between which two it lies."""

    low: float
    high: float

    @property
    def is_exact(self) -> bool:
        """Whether it is known."""
        return self.low == self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """What was cut when the rows were made."""

    window: int
    """Tokens that a row may have, W."""
    target: int
    """Tokens that an answer may have; W, unless ``--max-target-length`` says less."""
    inputs: Range
    """Rows whose encoder side was cut. A cut header may be in a row whose history was cut too."""
    answers: int
    """Rows whose answer was cut."""

    @classmethod
    def of(cls, manifest: Manifest, lengths: Lengths) -> "Cuts":
        """Read them from a manifest; without a window there, it is the longest row's length."""
        config, reasons = manifest.config, manifest.counts.get("reasons", {})
        turns = reasons.get("history_cut", 0) + reasons.get("question_cut", 0)
        headers = reasons.get("header_cut", 0)
        longest = max(int(side.max()) for side in (lengths.encoder, lengths.decoder))
        window = config.get("model_max_length") or longest
        return cls(
            window=window,
            target=config.get("max_target_length") or window,
            inputs=Range(max(turns, headers), turns + headers),
            answers=reasons.get("answer_cut", 0),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowEffect:
    """What a window does to the rows."""

    window: int
    inputs_cut: Range
    """Rows that lose some of their history, question or header."""
    answers_cut: Range
    """Rows whose answer loses its end."""
    answer_tokens_lost: int
    """Tokens of the stored answers that would go."""
    encoder_tokens: Range
    """Tokens of all rows on the encoder's side."""
    cost: Range
    """Operations without padding, as a share of those of the window that the rows have."""


def window_effects(
    lengths: Lengths, cuts: Cuts, flops: Flops, windows: Iterable[int] = WINDOWS
) -> list[WindowEffect]:
    """Return what each window, and the folder's own, does to at least one row, shortest first."""
    return [
        _smaller(window, lengths, cuts, flops)
        if window <= cuts.window
        else _larger(window, lengths, cuts, flops)
        for window in sorted({*windows, cuts.window})
    ]


def _smaller(window: int, lengths: Lengths, cuts: Cuts, flops: Flops) -> WindowEffect:
    rows, own = len(lengths), window == cuts.window
    target = min(window, cuts.target)
    encoder, decoder = np.minimum(lengths.encoder, window), np.minimum(lengths.decoder, target)
    longer = lengths.encoder > window
    known = lengths.surely_cut
    if known.sum() > cuts.inputs.high:  # a template that leaves out more than whole turns
        known = np.zeros_like(known)
    cut, others = int((longer | known).sum()), cuts.inputs.high - int(known.sum())
    answers = cuts.answers if target == cuts.target else int((lengths.decoder > target).sum())
    tokens, cost = int(encoder.sum()), _share(encoder, decoder, lengths, flops)
    return WindowEffect(
        window=window,
        inputs_cut=Range(max(cut, cuts.inputs.low), min(cut + others, rows)),
        answers_cut=Range(answers, answers),
        answer_tokens_lost=int((lengths.decoder - decoder).sum()),
        encoder_tokens=Range(tokens if own or not longer.any() else 0, tokens),
        cost=Range(cost if own or not longer.any() else 0.0, cost),
    )


def _larger(window: int, lengths: Lengths, cuts: Cuts, flops: Flops) -> WindowEffect:
    follows = cuts.target == cuts.window  # and the target does not stay where it is
    now = flops(lengths.encoder, lengths.decoder)
    was_cut = int(min(cuts.inputs.high, len(lengths)))
    tokens = int(lengths.encoder.sum())
    growth = _largest(window - lengths.encoder, was_cut)
    longer = _largest(flops(window, lengths.decoder) - now, was_cut)
    if follows and cuts.answers:
        # An answer that was cut has as many tokens as it may have.
        full = np.flatnonzero(lengths.decoder == cuts.target)
        more = flops(window, window) - flops(window, lengths.decoder[full])
        longer += _largest(more, cuts.answers)
    return WindowEffect(
        window=window,
        inputs_cut=Range(0, was_cut),
        answers_cut=Range(0 if follows else cuts.answers, cuts.answers),
        answer_tokens_lost=0,
        encoder_tokens=Range(tokens, tokens + int(growth)),
        cost=Range(1.0, 1.0 + float(longer / now.sum())),
    )


def _share(encoder: IntArray, decoder: IntArray, lengths: Lengths, flops: Flops) -> float:
    whole = flops(lengths.encoder, lengths.decoder).sum()
    return float(flops(encoder, decoder).sum() / whole)


def _largest(values: Any, count: int) -> float:
    """Return the sum of the so many largest values."""
    return float(np.sort(values)[::-1][:count].sum())
