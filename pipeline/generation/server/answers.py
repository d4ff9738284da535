"""The engine's answers to one request, heard of in the event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from pipeline.generation.engine.answer import Answer, Listener, Result, Sampling
from pipeline.generation.engine.scheduler import Engine
from pipeline.generation.server.failures import RefusedError


class Asked(NamedTuple):
    """One answer that is wanted."""

    ids: list[int]
    sampling: Sampling


class Heard(NamedTuple):
    """What was heard of one of the answers."""

    choice: int
    """Its place among the answers."""
    text: str
    """A piece of it; empty with the end."""
    result: Result | None
    """The answer, where this is its end."""


class Answers:
    """Submits what a request wants, and hears of it.

    Args:
        engine: Writes them.
        asked: What is wanted, in the order of the choices.
        streaming: Hear of pieces too, not of ends alone.

    Raises:
        QueueFullError: Not all of them fit into the queue; none is written then.
        ConfigError: One takes more memory than there is.
    """

    def __init__(self, engine: Engine, asked: Sequence[Asked], *, streaming: bool) -> None:
        self.prompt_tokens = sum(len(ids) for ids in {id(a.ids): a.ids for a in asked}.values())
        self._loop, self._streaming = asyncio.get_running_loop(), streaming
        self._heard: asyncio.Queue[tuple[int, str | BaseException | None]] = asyncio.Queue()
        self._answers: list[Answer] = []
        try:
            for index, (ids, sampling) in enumerate(asked):
                self._answers.append(engine.submit(ids, sampling, self._listener(index)))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Ask for no more; their places are free after a few steps."""
        for answer in self._answers:
            answer.cancel()

    @property
    def written_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(len(answer.ids) for answer in self._answers)

    async def __aiter__(self) -> AsyncIterator[Heard]:
        """Yield what is heard until all have ended.

        Raises:
            RefusedError: They were ended from elsewhere: the server stops.
        """
        unfinished = len(self._answers)
        while unfinished:
            index, heard = await self._heard.get()
            if isinstance(heard, BaseException):
                raise heard
            if heard is not None:
                yield Heard(index, heard, None)
                continue
            result = self._answers[index].as_result()
            if result.finish_reason == "cancelled":
                raise RefusedError(503, "the server is stopping", code="stopping")
            unfinished -= 1
            yield Heard(index, "", result)

    async def results(self) -> list[Result]:
        """Wait for all of them."""
        found = {heard.choice: heard.result async for heard in self if heard.result is not None}
        return [found[index] for index in range(len(self._answers))]

    def _listener(self, index: int) -> Listener:
        put: Callable[..., None] = self._heard.put_nowait

        def listen(piece: str | BaseException | None) -> None:
            if self._streaming or not isinstance(piece, str):
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody hears
                    self._loop.call_soon_threadsafe(put, (index, piece))

        return listen
