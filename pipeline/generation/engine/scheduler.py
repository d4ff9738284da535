"""Which answers are written together, and the thread that writes them.

    with Engine(decoder, tokenizer, eos_ids=...) as engine:
        answer = engine.submit(source, sampling)
        for piece in answer:
            ...

The oldest request is always among the next ones, so that none waits for ever; those that are most
like it in length go with it, as many as fit into the decoder's rows and tokens. Where the decoder
allows it, they join between the steps of those that are being written.
"""

import threading
from collections.abc import Sequence
from typing import Self

from pipeline.errors import ConfigError
from pipeline.generation.engine.answer import Answer, Listener, Sampling
from pipeline.generation.engine.decoder import Decoder, padded_tokens
from pipeline.tokenizer import TextTokenizer

_STEPS_BETWEEN_CHANGES = 8
"""Whoever joins or leaves has the whole batch copied: not at every step."""


class QueueFullError(Exception):
    """As many requests are waiting as may."""


class Engine:
    """Takes requests from any thread, and writes the answers in one of its own.

    Args:
        decoder: Used by that thread alone.
        tokenizer: Decodes the answers.
        eos_ids: Ids that end an answer.
        max_waiting: More requests than so many waiting are refused.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TextTokenizer,
        *,
        eos_ids: frozenset[int],
        max_waiting: int | None = None,
    ) -> None:
        self._decoder, self._tokenizer, self._eos_ids = decoder, tokenizer, eos_ids
        self._max_waiting = max_waiting
        self._waiting: list[Answer] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._steps = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, source: Sequence[int], sampling: Sampling, listener: Listener | None = None
    ) -> Answer:
        """Ask for an answer.

        Args:
            source: Ids of the encoder row, as training makes them.
            sampling: How it is written.
            listener: Hears of its text, in another thread; None: iterate over the answer.

        Raises:
            ConfigError: It needs more memory than there is for all answers together.
            QueueFullError: Too many are waiting.
        """
        answer = Answer(source, sampling, self._tokenizer, self._eos_ids, listener)
        if padded_tokens([answer]) > self._decoder.max_tokens:
            most = self._decoder.max_tokens // sampling.num_beams - len(source)
            raise ConfigError(
                "answers of this length do not fit in memory",
                where="--max-new-tokens",
                got=f"{sampling.max_new_tokens} tokens, {sampling.num_beams} beams",
                do=f"give at most {max(most, 1)}, or a larger --max-batch-tokens",
            )
        with self._changed:
            if self._is_closed:
                raise QueueFullError("the engine is closed")
            if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting")
            self._waiting.append(answer)
            self._changed.notify()
        return answer

    @property
    def num_waiting(self) -> int:
        """Requests that are not being written yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Answers that are being written."""
        return len(self._decoder.running)

    def step(self) -> bool:
        """Begin what can begin and write one id of each running answer.

        Returns:
            Whether anything is left to do. The engine's own thread calls this; a caller that
            started none may.
        """
        decoder = self._decoder
        if self._steps % _STEPS_BETWEEN_CHANGES == 0 or not decoder.running:
            decoder.tidy()
            if chosen := self._choose():
                try:
                    decoder.admit(chosen)
                except Exception as error:
                    for answer in chosen:
                        answer.fail(error)
                    raise
        self._steps += 1
        if not decoder.running:
            return bool(self._waiting)
        decoder.step()
        if all(answer.finish_reason or answer.is_cancelled for answer in decoder.running):
            self._steps = 0
        return True

    def close(self) -> None:
        """End the thread after its step; what is not finished is cancelled."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        for answer in [*self._waiting, *self._decoder.running]:
            answer.end("cancelled")

    def _choose(self) -> list[Answer]:
        """Take the requests out of those that wait that can be written now."""
        decoder = self._decoder
        with self._changed:
            for answer in (a for a in self._waiting if a.is_cancelled):
                answer.end("cancelled")
            self._waiting = [a for a in self._waiting if not a.is_cancelled]
            if not self._waiting or (decoder.running and not decoder.can_join):
                return []
            first = self._waiting[0]
            group = decoder.group(decoder.running[0] if decoder.running else first)
            likest = sorted(
                (a for a in self._waiting if decoder.group(a) == group),
                key=lambda a: (a is not first, abs(a.max_length - first.max_length)),
            )
            if not likest or likest[0] is not first:
                return []  # the oldest must wait for the end of another group: all wait with it
            chosen = self._fitting(likest)
            taken = set(map(id, chosen))
            self._waiting = [a for a in self._waiting if id(a) not in taken]
            return chosen

    def _fitting(self, answers: Sequence[Answer]) -> list[Answer]:
        """Return the first of some answers that fit together with those that run."""
        chosen: list[Answer] = []
        for answer in answers:
            together = [*self._decoder.running, *chosen, answer]
            too_many = len(together) > self._decoder.max_rows
            if together[1:] and (too_many or padded_tokens(together) > self._decoder.max_tokens):
                break
            chosen.append(answer)
        return chosen

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._is_closed or self._waiting or self._decoder.running):
                    self._changed.wait()
                if self._is_closed:
                    return
            try:
                self.step()
            except Exception as error:  # out of memory: those that ran are told, others continue
                for answer in self._decoder.running:
                    answer.fail(error)
                self._decoder.tidy()
