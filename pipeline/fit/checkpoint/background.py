"""One piece of work at a time in a thread, while the steps go on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs pieces of work one after another; what one raises is raised where it is asked for."""

    def __init__(self) -> None:
        """Nothing is running."""
        self._pool = ThreadPoolExecutor(1, "writing")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start a piece of work.

        Raises:
            Exception: What the one before raised; it is waited for.
        """
        self.wait()
        self._running = self._pool.submit(work)

    def check(self) -> None:
        """Raise what a piece of work that has ended raised; wait for nothing."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the piece of work that is running, and raise what it raises, once.

        >>> background, written = Background(), []
        >>> background.start(lambda: written.append("checkpoint-300"))
        >>> background.wait()
        >>> written
        ['checkpoint-300']
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait for the work that is running, and end the thread; the work's fault is not raised."""
        self._pool.shutdown()
