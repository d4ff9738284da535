"""What ``/metrics`` counts, in Prometheus' form."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipeline.generation.engine.scheduler import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counts of one server.

    Args:
        engine: Tells how many wait and are being written.
    """

    def __init__(self, engine: Engine) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "duet_requests", "Requests by status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "duet_request_seconds",
            "From a request to the end of its response.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("duet_prompt_tokens", "Tokens read.", registry=registry)
        self.answer_tokens = Counter("duet_answer_tokens", "Tokens written.", registry=registry)
        running = Gauge("duet_answers_running", "Answers being written.", registry=registry)
        running.set_function(lambda: engine.num_running)
        waiting = Gauge("duet_answers_waiting", "Answers that wait.", registry=registry)
        waiting.set_function(lambda: engine.num_waiting)

    def text(self) -> bytes:
        """Return all of them as text."""
        return generate_latest(self._registry)
