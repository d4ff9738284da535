"""Answers written by CTranslate2: a batch runs in threads of its own and tells of each token.

What a batch shares there must be alike: temperature, top_p, top_k, penalty and beams. New requests
wait for its end. Its draws come from a generator of its own, which no request can seed.
"""

import json
import queue
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.generation.engine.answer import Answer

_WAIT = 0.05
"""Seconds that a step waits for a token: cancelled answers are looked for in between."""


class CTranslate2Decoder:
    """Writes answers with a model that was exported for CTranslate2.

    Args:
        folder: The exported folder.
        device: ``cpu`` or ``cuda``.
        compute_type: Of its matrices, ``float32`` or ``bfloat16``.
        max_rows: Most answers at once.
        max_tokens: Most tokens at once, padding counted.

    Raises:
        ModelError: The folder cannot be loaded.
    """

    can_join = False

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        compute_type: str,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        import ctranslate2

        self.max_rows, self.max_tokens = max_rows, max_tokens
        self._running: list[Answer] = []
        self._results: list[Any] = []
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()
        try:
            self._translator = ctranslate2.Translator(
                str(folder), device=device, compute_type=compute_type
            )
            names = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(
                "the exported model cannot be loaded",
                where=folder,
                got=" ".join(str(error).split()),
                do="export it again: duet export OUT --format ctranslate2 --output-dir FOLDER",
            ) from error
        self._tokens: list[str] = names
        self._ids = {token: i for i, token in enumerate(names)}

    @property
    def running(self) -> list[Answer]:
        """The answers of the batch."""
        return self._running

    def group(self, answer: Answer) -> Hashable:
        """Return what must be alike in a batch."""
        s = answer.sampling
        length = s.max_new_tokens if s.num_beams > 1 else None  # else each row ends by itself
        return s.temperature, s.top_p, s.top_k, s.repetition_penalty, s.num_beams, length

    def admit(self, answers: Sequence[Answer]) -> None:
        """Start a batch."""
        answers = list(answers)
        sampling = answers[0].sampling
        told = self._told

        # It must not hold this object: a thread of the translator drops it after the batch, and
        # were it the last to hold the translator, that thread would join itself and abort.
        def take(step: Any) -> bool:
            answer: Answer = answers[step.batch_id]
            is_over = answer.is_cancelled or answer.add(step.token_id)
            told.put(None)
            return is_over

        options: dict[str, Any] = {"sampling_topk": 1}
        if sampling.temperature > 0:
            options = {
                "sampling_topk": sampling.top_k,
                "sampling_topp": sampling.top_p,
                "sampling_temperature": sampling.temperature,
            }
        self._running = answers
        self._results = self._translator.translate_batch(
            [[self._tokens[i] for i in answer.source] for answer in answers],
            asynchronous=True,
            beam_size=sampling.num_beams,
            callback=take if sampling.num_beams == 1 else None,
            max_decoding_length=max(answer.sampling.max_new_tokens for answer in answers),
            max_input_length=0,
            repetition_penalty=sampling.repetition_penalty,
            return_end_token=True,
            **options,
        )

    def step(self) -> None:
        """Wait for a token."""
        try:
            self._told.get(timeout=_WAIT)
            while not self._told.empty():
                self._told.get()
        except queue.Empty:
            pass
        if self._results and all(result.done() for result in self._results):
            self._finish()

    def tidy(self) -> None:
        """Keep a batch until all of it is done: nothing can be taken out of it."""
        if not self._results:
            self._running = []

    def _finish(self) -> None:
        results, self._results = self._results, []
        for answer, result in zip(self.running, results, strict=True):
            tokens = result.result().hypotheses[0]
            if answer.is_cancelled:
                answer.end("cancelled")
            for token in tokens[len(answer.ids) :]:
                if answer.add(self._ids[token]):
                    break
            # The end token is in the result where there is one.
            answer.end("length")
        self._running.clear()  # the callback's list too
