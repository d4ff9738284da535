"""Models and known answers to a report: loss, metrics of generated answers, how sure they are."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.console.logs import note
from pipeline.console.units import counted, spread
from pipeline.errors import InputError
from pipeline.fit.model.loading import load_model, load_trained
from pipeline.generation.config import EvalConfig
from pipeline.generation.evaluate.intervals import Draws
from pipeline.generation.evaluate.losses import losses_of
from pipeline.generation.evaluate.metrics import Metric, answer_metrics, require_metrics
from pipeline.generation.evaluate.pairs import Pairs, opened_pairs
from pipeline.generation.model import (
    TrainedModel,
    baseline_model,
    check_trained,
    device,
    open_model,
)
from pipeline.generation.progress import AnswerProgress

_LENGTHS = (("up to 64 tokens", 0, 64), ("65 to 256", 65, 256), ("more", 257, 1 << 31))
_DEPTHS = (("first exchange", 0, 2), ("2 to 4 exchanges", 3, 8), ("more", 9, 1 << 31))
_CODE = "```"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that is judged; loaded when its turn comes."""

    name: str
    open: Callable[[], tuple[TrainedModel, Any]]
    """Returns what answers and, for the loss, the same model of transformers on its device."""


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Judge models on the answers of a data set.

    Returns:
        The report: JSON.

    Raises:
        ConfigError: The metrics' packages are missing.
        InputError, ModelError, PreparedFolderError: A model or the data cannot be used.
    """
    if config.generate:
        require_metrics()
    candidates = _candidates(config)
    common, metrics = None, dict[str, list[Metric]]()
    with contextlib.ExitStack() as stack:
        found: dict[str, Pairs] = {}
        for candidate in candidates:
            model, plain = candidate.open()
            pairs = stack.enter_context(opened_pairs(config, model))
            if common is None:
                common = pairs.only(spread(len(pairs.rows), config.max_samples))
            pairs = found[candidate.name] = _aligned(pairs, common, candidate.name)
            metrics[candidate.name] = _judged(config, model, plain, pairs)
            del model, plain
        assert common is not None
        return _report(config, common, metrics)


def _candidates(config: EvalConfig) -> list[_Candidate]:
    names = list(dict.fromkeys(config.models))
    for name in names:  # before the first one is judged, which takes long
        check_trained(Path(name))

    def trained(name: str) -> Callable[[], tuple[TrainedModel, Any]]:
        def load() -> tuple[TrainedModel, Any]:
            model = open_model(Path(name), config)
            return model, _in_float32(model) or load_trained(Path(name)).eval().to(device())

        return load

    def untrained() -> tuple[TrainedModel, Any]:
        assert config.baseline is not None
        like = open_model(Path(names[0]), config)
        plain = load_model(config.baseline, like.tokenizer).eval().to(device())
        model = baseline_model(config.baseline, copy.deepcopy(plain), like, config)
        return model, _in_float32(model) or plain

    found = [_Candidate(name, trained(name)) for name in names]
    if config.baseline is not None:
        found.insert(0, _Candidate(f"{config.baseline} (baseline)", untrained))
    return found


def _in_float32(model: TrainedModel) -> Any:
    """Return the model that answers, if it computes in float32, as the loss is to be."""
    written_by = getattr(model.decoder, "model", None)
    return written_by if written_by is not None and written_by.dtype == torch.float32 else None


def _aligned(pairs: Pairs, common: Pairs, name: str) -> Pairs:
    """Return a model's pairs in the order of the others'.

    Raises:
        InputError: One is missing: another tokenizer left it out.
    """
    places = {key: i for i, key in enumerate(pairs.keys())}
    missing = [key for key in common.keys() if key not in places]  # noqa: SIM118
    if missing:
        raise InputError(
            "the models do not have the same pairs",
            where=name,
            got=f"none of conversation {missing[0][0]}, turn {missing[0][1]}",
            do="evaluate it by itself",
        )
    return pairs.only([places[key] for key in common.keys()])  # noqa: SIM118


def _judged(config: EvalConfig, model: TrainedModel, plain: Any, pairs: Pairs) -> list[Metric]:
    note(f"{model.name}: the loss of {counted(len(pairs.rows), 'pair')}")
    metrics = losses_of(plain, pairs)
    if not config.generate:
        return metrics
    with model.engine() as engine, AnswerProgress(len(pairs.rows)) as progress:
        asked = [
            engine.submit(
                pairs.dataset[int(row)]["input_ids"].tolist(),
                model.sampling(config, seed=config.seed + i),
            )
            for i, row in enumerate(pairs.rows)
        ]
        results = []
        for answer in asked:
            results.append(answer.result())
            progress.add(results[-1].num_tokens)
    ended = [result.finish_reason == "stop" for result in results]
    return metrics + answer_metrics([r.text for r in results], pairs.references, ended)


def _report(config: EvalConfig, pairs: Pairs, metrics: dict[str, list[Metric]]) -> dict[str, Any]:
    draws = Draws(pairs.conversations, config.seed)
    names = list(metrics)
    differences = [
        {
            "model": other,
            "than": names[0],
            "metrics": {
                one.name: draws.difference(one, two).as_json()
                for one, two in zip(metrics[names[0]], metrics[other], strict=True)
            },
        }
        for other in names[1:]
    ]
    return {
        "data": list(config.data_path),
        "pairs": len(pairs.rows),
        "conversations": len(set(pairs.conversations)),
        "models": {
            name: {
                "metrics": {m.name: draws.interval(m).as_json() for m in some},
                "groups": _by_group(draws, some, groups_of(pairs)),
            }
            for name, some in metrics.items()
        },
        "differences": differences,
        "signatures": {m.name: m.signature for m in metrics[names[0]] if m.signature},
    }


Groups = dict[str, dict[str, npt.NDArray[np.bool_]]]


def groups_of(pairs: Pairs) -> Groups:
    """Return which pairs are in which group, by kind of group; empty ones left out."""
    lengths, turns = pairs.dataset.lengths[1][pairs.rows], np.array(pairs.turns)
    has_code = np.array([_CODE in text for text in pairs.references])
    kinds: Groups = {
        "answer length": {
            name: (lengths >= low) & (lengths <= high) for name, low, high in _LENGTHS
        },
        "history": {name: (turns >= low) & (turns <= high) for name, low, high in _DEPTHS},
        "code": {"code": has_code, "no code": ~has_code},
    }
    return {
        kind: {name: chosen for name, chosen in groups.items() if chosen.any()}
        for kind, groups in kinds.items()
    }


def _by_group(draws: Draws, metrics: list[Metric], kinds: Groups) -> dict[str, Any]:
    return {
        kind: {
            name: {
                "pairs": int(chosen.sum()),
                "metrics": {m.name: draws.interval(m, chosen).as_json() for m in metrics},
            }
            for name, chosen in groups.items()
        }
        for kind, groups in kinds.items()
    }
