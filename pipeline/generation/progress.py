"""How far the answers are: on a terminal a bar, elsewhere a line now and then."""

import time

from pipeline.console.progress import Bar

_SECONDS_BETWEEN_LINES = 10.0


class AnswerProgress(Bar):
    """Answers and tokens a second, and the time left."""

    def __init__(self, total: int, start: int = 0) -> None:
        super().__init__("answers", total, unit="steps", start=start)
        self._done = self._before = start
        self._tokens = 0
        self._began = self._last = time.monotonic()

    def add(self, tokens: int) -> None:
        """Take note of an answer."""
        self._done += 1
        self._tokens += tokens
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (self._done - self._before) / seconds
        status = f"{rate:.1f} answers/s, {self._tokens / seconds:,.0f} tokens/s"
        self.update(self._done, status)
        is_last = self._done == self._total
        if not self.drawn and (is_last or time.monotonic() - self._last > _SECONDS_BETWEEN_LINES):
            self._last = time.monotonic()
            left = (self._total - self._done) / rate
            self.print(f"answers: {self._done:,} of {self._total:,}, {status}, {left:.0f} s left")
