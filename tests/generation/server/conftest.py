"""Servers in processes of their own, as a user has them."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from openai import OpenAI

from pipeline.cli import main
from pipeline.tokenizer import TextTokenizer
from scripts.ranks import Ranks
from scripts.tiny_t5 import SAMPLE, read_texts

KEY = "a-key-of-the-tests-7319"
ENDLESS = 500
"""Tokens of an answer that lasts for many seconds."""


class Server:
    """A running ``duet serve``."""

    def __init__(self, model: Path, folder: Path, *flags: str, key: str | None = None) -> None:
        self.key = key
        command = ["serve", str(model), "--port", "0", *flags]
        environment = {"DUET_API_KEY": key} if key else {}
        self._ranks = Ranks(1, main, command, folder=folder, environment=environment)
        self.said = self._ranks.said
        self._ranks.wait_for("answers at")
        self.url = re.findall(r"answers at (http://\S+:\d+)/", self.said())[0]

    def client(self, **settings: Any) -> OpenAI:
        """Return OpenAI's client of it, which tries each request once."""
        options = {"api_key": self.key or "none", "max_retries": 0, "timeout": 120} | settings
        return OpenAI(base_url=f"{self.url}/v1", **options)

    def metric(self, name: str) -> float:
        """Return a figure of ``/metrics``."""
        import httpx2

        headers = {"Authorization": f"Bearer {self.key}"}
        text = httpx2.get(f"{self.url}/metrics", headers=headers, timeout=60).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def wait_until(self, name: str, is_right: Callable[[float], bool]) -> None:
        """Wait until a figure of ``/metrics`` is right."""
        for _ in range(600):
            if is_right(self.metric(name)):
                return
            time.sleep(0.05)
        raise AssertionError((name, self.metric(name)))

    def memory(self, kind: str = "VmRSS") -> int:
        """Return the bytes that it takes; ``VmHWM``: that it took at most."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        found = re.search(rf"{kind}:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def send_signal(self, number: int) -> None:
        os.kill(self._pid, number)

    def is_running(self) -> bool:
        return self._ranks.processes[0].is_alive()

    def wait(self, timeout: float = 60) -> int | None:
        """Return the exit code, when it has ended; None if it had to be killed then."""
        return self._ranks.end(timeout)[0]

    @property
    def _pid(self) -> int:
        return self._ranks.processes[0].pid or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait(timeout=0)


@pytest.fixture(scope="session")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that wants a key."""
    folder = tmp_path_factory.mktemp("server")
    with Server(trained, folder, "--max-new-tokens", str(ENDLESS), key=KEY) as running:
        yield running
        assert KEY not in running.said()
        assert "Traceback" not in running.said(), running.said()


@pytest.fixture(scope="session")
def endless(plain_model: Any, tokenizer: TextTokenizer) -> str:
    """A prompt whose answer does not end by itself."""
    import torch

    for text in read_texts(SAMPLE)[:40]:
        prompt = text[:60]
        (ids,) = tokenizer.encode_batch([prompt])
        row = torch.tensor([[*ids, tokenizer.eos_id]])
        output = plain_model.generate(row, max_new_tokens=150, num_beams=1)
        if output.shape[1] == 151 and output[0, -1] != tokenizer.eos_id:
            return prompt
    raise AssertionError("each answer ends")
