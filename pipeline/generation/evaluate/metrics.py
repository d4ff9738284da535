r"""Answers and their references to numbers.

A metric is columns, a row for each pair, and what their sums give: so that a group of pairs, or a
draw of them, has its value without scoring anything again. chrF and BLEU are sacrebleu's, of its
own statistics of each pair; their signatures say which. White space counts in chrF and ROUGE-L, for
an answer with code is not the same without it.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import require_package

Columns = npt.NDArray[np.float64]
_NGRAM = 4


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that is made of sums over pairs."""

    name: str
    columns: Columns
    """[pairs, K]."""
    value: Callable[[Columns], float]
    """Takes the sums, [K]."""
    signature: str = ""


def ratio(sums: Columns) -> float:
    """Return the first sum over the second; NaN where that is zero."""
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def require_metrics() -> None:
    """Refuse, before anything takes time, what needs packages that are not there.

    Raises:
        ConfigError: One is missing.
    """
    require_package(
        "sacrebleu",
        "rouge_score",
        where="duet eval",
        install='"duet-t5[eval]"',
        otherwise="give --no-generate for the loss alone",
    )


def loss_metrics(losses: Columns, tokens: Columns, num_bytes: Columns) -> list[Metric]:
    """Return the loss and bits per byte, as ``fit`` has them.

    Args:
        losses: Summed over each pair's target tokens, [pairs].
        tokens: How many they are, [pairs].
        num_bytes: Of the text that they decode to, [pairs].
    """
    bits = losses / math.log(2)
    return [
        Metric("loss", np.stack([losses, tokens], axis=1), ratio),
        Metric("bits_per_byte", np.stack([bits, num_bytes], axis=1), ratio),
    ]


def answer_metrics(
    answers: Sequence[str], references: Sequence[str], ended: Sequence[bool]
) -> list[Metric]:
    """Return what compares answers with references.

    Args:
        answers: Of the model, one a pair.
        references: Of the data.
        ended: Whether each answer came to its end by itself.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    rouge = RougeScorer(["rougeL"], tokenizer=_WhiteSpaceKept())
    rouge_l = [
        rouge.score(reference, answer)["rougeL"].fmeasure
        for answer, reference in zip(answers, references, strict=True)
    ]
    exact = [a == r for a, r in zip(answers, references, strict=True)]
    lengths = np.array([[len(a), len(r)] for a, r in zip(answers, references, strict=True)], float)
    repeats = np.array([repeated_ngrams(answer) for answer in answers], float)
    return [
        _of_sacrebleu("chrf", CHRF(whitespace=True), answers, references),
        _of_sacrebleu("bleu", BLEU(), answers, references),
        Metric("rouge_l", _with_ones(rouge_l), ratio),
        Metric("exact_match", _with_ones(exact), ratio),
        Metric("length_ratio", lengths, ratio),
        Metric("ended", _with_ones(ended), ratio),
        Metric(f"repeated_{_NGRAM}grams", repeats, ratio),
    ]


def repeated_ngrams(text: str) -> tuple[int, int]:
    """Return how many of a text's word n-grams stood in it before, and how many there are.

    >>> repeated_ngrams("a b c d a b c d e")
    (1, 6)
    """
    words = text.split()
    ngrams = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
    return len(ngrams) - len(set(ngrams)), len(ngrams)


class _WhiteSpaceKept:
    r"""Cuts a text for ROUGE: words, signs, and all white space but a single space.

    >>> _WhiteSpaceKept().tokenize("if x:\n    y += 1")
    ['if', 'x', ':', '\n    ', 'y', '+', '=', '1']
    """

    _PIECES = re.compile(r"\w+|[^\w\s]|\s+")

    def tokenize(self, text: str) -> list[str]:
        return [piece for piece in self._PIECES.findall(text) if piece != " "]


def _with_ones(values: Sequence[float]) -> Columns:
    return np.stack([np.array(values, float), np.ones(len(values))], axis=1)


def _of_sacrebleu(
    name: str, metric: Any, answers: Sequence[str], references: Sequence[str]
) -> Metric:
    """Return a metric of sacrebleu with its statistics of each pair, which are sums already."""
    metric.corpus_score(answers, [references])  # fills in what the signature says
    statistics = metric._extract_corpus_statistics(answers, [references])

    def value(sums: Columns) -> float:
        return float(metric._compute_score_from_stats([int(s) for s in sums]).score)

    return Metric(name, np.array(statistics, float), value, str(metric.get_signature()))
