"""``--eval-samples``: a few rows of each eval set are answered at each evaluation.

    OUT/samples.jsonl   an object a line: step, eval_set (of a named one), conversation_id, turn,
                        question, answer, reference, finish_reason (stop or length)

The answers are greedy, as ``generate`` of the model that is saved then gives them. All processes
write the same ones in step, an id at a time, for a sharded model wants all of them in each pass.
"""

import contextlib
import json
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.console.progress import Wait
from pipeline.console.units import spread
from pipeline.fit.data.loader import to_device
from pipeline.fit.model.fast_paths.attention import stock_attention
from pipeline.fit.model.fast_paths.compile import uncompiled
from pipeline.fit.model.loading import quiet_transformers
from pipeline.fit.model.token_ids import eos_ids
from pipeline.fit.training.evaluate import Evaluator
from pipeline.store.atomic import append_durably, write_file
from pipeline.template import parse_encoder_text

FILE = "samples.jsonl"
"""In the output folder."""
Sample = dict[str, Any]
"""A row and its answer, as a line of the file has them, without the step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSamples:
    """Rows of an eval set, the same at each evaluation, and how they are answered."""

    evaluator: Evaluator
    """Of the set."""
    count: int
    """Rows, spread over the set."""
    batch_size: int
    """Rows at once."""
    max_new_tokens: int
    is_compiled: bool = False
    """Whether the model's layers are, by ``--torch-compile``: an answer's lengths are too many."""

    def answer(
        self, model: torch.nn.Module, stopped: Callable[[], signal.Signals | None] = lambda: None
    ) -> list[Sample] | signal.Signals:
        """Return the rows with their answers.

        What ``stopped`` returns before an id is written ends it all, and is returned. It must say
        the same in all processes.
        """
        lengths = self.evaluator.dataset.lengths[0]
        rows = spread(len(lengths), self.count)
        alike = sorted(rows, key=lambda row: int(lengths[row]))
        answers: dict[int, list[int]] = {}
        was_training, stop = model.training, None

        def is_over() -> bool:
            nonlocal stop
            stop = stop or stopped()
            return stop is not None

        model.eval()
        with Wait("answering samples", unit="batches") as wait:
            for start in wait.each(range(0, len(alike), self.batch_size)):
                some = alike[start : start + self.batch_size]
                answers |= zip(some, self._write(model, some, is_over), strict=True)
                if stop is not None:
                    break
        model.train(was_training)
        return stop or self._described(model, rows, answers)

    @torch.no_grad()
    def _write(
        self, model: torch.nn.Module, rows: list[int], is_over: Callable[[], bool]
    ) -> list[list[int]]:
        """Return the ids that are written for some rows, each with what stands after its end."""
        evaluator = self.evaluator
        accelerator, dataset = evaluator.accelerator, evaluator.dataset
        batch = dataset.batch(np.array(rows), evaluator.pad_id)
        batch = to_device({name: batch[name] for name in _SOURCE}, accelerator.device)

        def write(inner: Any) -> torch.Tensor:
            return _greedy(inner, batch, self.max_new_tokens, is_over)

        compiled = uncompiled() if self.is_compiled else contextlib.nullcontext()
        with accelerator.autocast(), compiled:
            ids: torch.Tensor = accelerator.unwrap_model(model).with_model(write)
        return ids.tolist()

    def _described(
        self, model: Any, rows: list[int], answers: Mapping[int, list[int]]
    ) -> list[Sample]:
        dataset, tokenizer = self.evaluator.dataset, self.evaluator.tokenizer
        ends = eos_ids(tokenizer, self.evaluator.accelerator.unwrap_model(model).model)
        named = {"eval_set": self.evaluator.name} if self.evaluator.name else {}
        ids, turns = (dataset.values(name, rows) for name in ("conversation_id", "turn"))
        samples = []
        for row, conversation_id, turn in zip(rows, ids, turns, strict=True):
            source, target = (side.tolist() for side in dataset[row].values())
            answer = answers[row]
            end = next((at for at, token in enumerate(answer) if token in ends), None)
            samples.append(
                named
                | {
                    "conversation_id": conversation_id,
                    "turn": turn,
                    "question": last_turn(tokenizer.decode_source(source)),
                    "answer": tokenizer.decode(answer[:end]),
                    "reference": tokenizer.decode(target),
                    "finish_reason": "length" if end is None else "stop",
                }
            )
        return samples


_SOURCE = ("input_ids", "attention_mask")


def last_turn(text: str) -> str:
    r"""Return the turn that an encoder's text asks to answer; all of a text of another template.

    >>> last_turn("Be kind.\n\n### Human: Hi\n### Assistant: Yes?\n### Human: Go\n### Assistant:")
    'Go'
    """
    _, turns = parse_encoder_text(text) or ("", [])
    return turns[-1].text if turns else text


def _greedy(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    is_over: Callable[[], bool],
) -> torch.Tensor:
    """Return the likeliest ids one after another: int64[B, T].

    The first process's choice counts in all of them. They are the same but for rounding, and a
    process that took another id would end at another step, and leave the others waiting.
    """
    from accelerate.utils import broadcast
    from transformers import LogitsProcessorList, StoppingCriteriaList

    def choose(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen: Any = broadcast(scores.argmax(dim=-1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    def end(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full((len(ids),), is_over(), device=ids.device)

    untyped: Any = (LogitsProcessorList([choose]), StoppingCriteriaList([end]))
    processors, criteria = untyped
    with stock_attention(model), quiet_transformers():
        ids: torch.Tensor = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            synced_gpus=False,
            return_dict_in_generate=False,
            logits_processor=processors,
            stopping_criteria=criteria,
        )
    return ids[:, 1:]


def append_samples(output: Path, step: int, samples: Sequence[Sample]) -> None:
    """Add the answers after a step to the file, all of them in one piece.

    Raises:
        OutputError: It cannot be written.
    """
    lines = (json.dumps({"step": step} | sample, ensure_ascii=False) for sample in samples)
    append_durably(output / FILE, "".join(f"{line}\n" for line in lines))


def keep_samples(output: Path, steps: Collection[int]) -> None:
    """Leave in the file what was answered after some steps: a resumed run takes the others anew.

    What a machine that lost its power left half written goes, too.

    Raises:
        OutputError: It cannot be written.
    """
    path = output / FILE
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) in steps]
    if not kept:
        path.unlink()
    elif kept != lines:
        write_file(path, b"".join(kept))


def _step_of(line: bytes) -> Any:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return json.loads(line)["step"]
    return None
