"""A server that is asked too much, by the wrong ones, or to stop."""

import asyncio
import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from pipeline.cli import run
from tests.generation.server.conftest import ENDLESS, Server

FEW = ("--max-new-tokens", str(ENDLESS), "--max-queue", "4")
TWO_AT_ONCE = ("--max-batch-tokens", str(2 * ENDLESS + 400))
MIB = 1024**2


@pytest.fixture(scope="module")
def small(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that writes two long answers at once, lets four wait, and wants no key."""
    with Server(trained, tmp_path_factory.mktemp("small"), *FEW, *TWO_AT_ONCE) as server:
        yield server


def long_answer(server: Server, prompt: str) -> httpx2.Response:
    body = {"prompt": prompt, "max_tokens": ENDLESS}
    return httpx2.post(f"{server.url}/v1/completions", json=body, timeout=120)


def is_zero(value: float) -> bool:
    return value == 0


def test_a_flood_is_told_to_come_again_and_those_that_leave_free_their_place(
    small: Server, endless: str
) -> None:
    async def flood() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=0) as client:
            create: Any = client.completions.create
            asked = [
                create(model="out", prompt=endless, max_tokens=ENDLESS, stream=True)
                for _ in range(40)
            ]
            results = await asyncio.gather(*asked, return_exceptions=True)
            streams = [result for result in results if not isinstance(result, Exception)]
            assert len(streams) in (5, 6)  # one or two are being written, four wait
            for stream in streams:
                await stream.close()
            with pytest.raises(openai.APITimeoutError):
                while True:  # until one is let in
                    with contextlib.suppress(openai.RateLimitError):
                        await create(model="out", prompt=endless, max_tokens=ENDLESS, timeout=0.3)
            return [result for result in results if isinstance(result, Exception)]

    refused = asyncio.run(flood())
    assert len(refused) in (34, 35)
    for error in refused:
        assert isinstance(error, openai.RateLimitError)
        assert error.response.headers["retry-after"] == "1"
        assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    small.wait_until("duet_answers_running", is_zero)
    small.wait_until("duet_answers_waiting", is_zero)
    with small.client() as client:
        answer = client.completions.create(model="out", prompt="x", max_tokens=3)
    assert answer.usage and answer.usage.completion_tokens <= 3
    written = small.metric("duet_answer_tokens_total")
    assert written < 4 * ENDLESS  # nobody wrote what nobody waits for


def test_100_mb_are_refused_and_not_kept(small: Server) -> None:
    url, before = f"{small.url}/v1/chat/completions", small.memory("VmHWM")
    block = b" " * MIB

    def blocks() -> Iterator[bytes]:
        for _ in range(100):
            yield block

    headers = {"Content-Type": "application/json"}
    sizes: list[dict[str, str]] = [{}, {"Content-Length": str(100 * MIB)}]
    for size in sizes:  # in pieces of unknown number, and announced
        response = httpx2.post(url, content=blocks(), headers=headers | size, timeout=60)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
    assert small.memory("VmHWM") - before < 30 * MIB
    with small.client() as client:
        assert client.completions.create(model="out", prompt="x", max_tokens=3).choices


def test_who_asks_before_sending_is_told_at_once(small: Server) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {100 * MIB}\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault(small: Server) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head.encode() + b'{"prompt"')
    for text in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9\r\n\r\n", b"\r\n" * 9):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(text)
    assert httpx2.get(f"{small.url}/health").json() == {"status": "ok"}
    assert "Traceback" not in small.said()


def test_without_a_key_a_server_is_asked_for_as_localhost_alone(small: Server) -> None:
    port = small.url.rsplit(":")[-1]
    for host, status in [("evil.example", 403), (f"localhost:{port}", 200), ("[::1]:9", 200)]:
        response = httpx2.get(f"{small.url}/v1/models", headers={"Host": host})
        assert response.status_code == status
    # A page elsewhere can have a browser send this, without asking first.
    response = httpx2.post(f"{small.url}/v1/completions", content=b'{"prompt": "x"}')
    assert response.status_code == 400


def test_sigterm_lets_answers_end_and_takes_no_more(small: Server, endless: str) -> None:
    got: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: got.append(long_answer(small, endless)))
    asking.start()
    small.wait_until("duet_answers_running", lambda value: value == 1)
    small.send_signal(signal.SIGTERM)
    for _ in range(200):
        late = long_answer(small, "x")
        if late.status_code != 200:
            break
        time.sleep(0.02)
    assert late.status_code == 503
    assert late.headers["retry-after"] == "1"
    assert late.json()["error"]["type"] == "server_error"
    assert httpx2.get(f"{small.url}/health").status_code == 503
    asking.join()
    assert got[0].status_code == 200
    assert got[0].json()["usage"]["completion_tokens"] == ENDLESS
    assert small.wait(timeout=30) == 0
    assert "Traceback" not in small.said()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{small.url}/health")


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(trained: Path, tmp_path: Path, endless: str) -> None:
    with Server(trained, tmp_path, *FEW) as server:
        got: list[httpx2.Response] = []
        asking = threading.Thread(target=lambda: got.append(long_answer(server, endless)))
        asking.start()
        server.wait_until("duet_answers_running", lambda value: value == 1)
        server.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.is_running()
        server.send_signal(signal.SIGINT)
        asking.join(timeout=30)
        assert got[0].status_code == 503
        assert server.wait(timeout=30) == 130
        assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--host", "0.0.0.0"], "DUET_API_KEY"),
        (["--host", "::"], "DUET_API_KEY"),
        (["--host", "a-name"], "DUET_API_KEY"),
        (["--api-key", "ключ-7"], "cannot be sent"),
        (["--max-queue", "0"], "give 1 or more"),
        (["--port", "70000"], "give 65535 or less"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("DUET_API_KEY", raising=False)
    assert run(["serve", str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert "ключ-7" not in error


def test_a_port_that_is_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", str(tmp_path), "--port", port]) == 1
    assert re.search(rf"127.0.0.1, {port}: Address already in use", capsys.readouterr().err)


def test_the_key_stands_in_no_print_of_the_settings() -> None:
    from pipeline.generation.config import ServeConfig

    assert "sesame" not in repr(ServeConfig(model="out", api_key="sesame"))


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--host", "--port", "--api-key", "--max-queue", "--engine"):
        assert flag in text
