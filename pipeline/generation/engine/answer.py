"""A request for an answer, and the answer as it comes."""

import queue
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.generation.engine.text import TextStream
from pipeline.tokenizer import TextTokenizer

FinishReason = Literal["stop", "length", "cancelled"]
"""An end token or a stop string; ``max_new_tokens``; nobody wanted the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How an answer is written; names and meanings are those of transformers' generation."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    num_beams: int = 1
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    seed: int = 0
    """Of this answer's draws, which are the same alone and in any batch. A draw close to the bound
    of two tokens may fall on either side: rounding differs with the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A finished answer."""

    text: str
    finish_reason: FinishReason
    num_tokens: int
    """Tokens that were written, the end token among them."""


Listener = Callable[[str | BaseException | None], None]
"""Hears of each piece of text, then of None, or of the error that ended it; in any thread."""


class Answer:
    """An answer that is waiting, being written, or finished.

    Iterating gives its text in pieces as they come. The decoders' side is ``add``, ``end`` and
    ``fail``; anyone may ``cancel``.

    Args:
        source: Ids of the encoder row.
        sampling: How it is written.
        tokenizer: Decodes it.
        eos_ids: Ids that end it.
        listener: Is called instead of iterating.
    """

    def __init__(
        self,
        source: Sequence[int],
        sampling: Sampling,
        tokenizer: TextTokenizer,
        eos_ids: frozenset[int],
        listener: Listener | None = None,
    ) -> None:
        self.source, self.sampling = source, sampling
        self.ids: list[int] = []
        """What was written so far."""
        self.finish_reason: FinishReason | None = None
        self.is_cancelled = False
        self.random = random.Random(sampling.seed)
        self._eos_ids = eos_ids
        self._stream = TextStream(tokenizer, sampling.stop)
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._tell = listener or self._pieces.put

    @property
    def max_length(self) -> int:
        """Most tokens of both rows, for budgets."""
        return len(self.source) + self.sampling.max_new_tokens

    def add(self, token: int) -> bool:
        """Take in the next id; return whether that was the last one."""
        if self.finish_reason is not None:
            return True
        self.ids.append(token)
        is_eos = token in self._eos_ids
        piece = "" if is_eos else self._stream.add(token)
        if piece:
            self._tell(piece)
        if is_eos or self._stream.is_stopped:
            self.end("stop")
        elif len(self.ids) >= self.sampling.max_new_tokens:
            self.end("length")
        return self.finish_reason is not None

    def end(self, reason: FinishReason) -> None:
        """Finish it, if it is not finished."""
        if self.finish_reason is None:
            rest = self._stream.close()
            self.finish_reason = reason
            if rest:
                self._tell(rest)
            self._tell(None)

    def fail(self, error: BaseException) -> None:
        """Let whoever waits for it meet an error."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"
            self._tell(error)

    def cancel(self) -> None:
        """Ask for no more of it; its place is free after a few steps."""
        self.is_cancelled = True

    def __iter__(self) -> Iterator[str]:
        """Yield the text in pieces, as they come; once."""
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def result(self) -> Result:
        """Wait for the end; not together with a listener."""
        for _ in self:
            pass
        return self.as_result()

    def as_result(self) -> Result:
        """Return what a finished answer is."""
        assert self.finish_reason is not None, "it is not finished"
        return Result(
            text=self._stream.text, finish_reason=self.finish_reason, num_tokens=len(self.ids)
        )
