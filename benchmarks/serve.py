"""What a server takes: a steady rate of requests for a while; memory and answers are watched.

    just bench serve [MODEL] [--rate 200] [--seconds 60] [--max-tokens 8]

MODEL is a trained folder; without one, a tiny random T5 is made. The server is ``duet serve`` in a
process of its own. Requests are sent when their time comes, whether or not earlier ones are
answered; a tenth of them as streams, a fiftieth is dropped by the client at once. Every answer must
be the one that was given to the same question before the load. Prints JSON: the rate that was
sent and answered, latencies in seconds, processor seconds and memory of the server. The client is
a few lines on sockets, as a whole one takes more of the processor than the server does.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from scripts.tiny_t5 import SAMPLE, make_tiny_t5, read_texts  # noqa: E402

PATH = "/v1/chat/completions"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--max-queue", type=int, default=2000)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with it
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or tiny_model(Path(folder))
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "pipeline", "serve", str(model), "--port", "0"]
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, "--max-queue", str(args.max_queue)], stderr=file, cwd=ROOT
            )
        try:
            load = Load(port_of(process, log), process.pid, args)
            print(json.dumps(asyncio.run(load.run()), indent=2))
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            print(f"the server ended with {code} and said:\n{log.read_text()}", file=sys.stderr)
        finally:
            process.kill()


def tiny_model(folder: Path) -> Path:
    from pipeline.tokenizer import load_tokenizer

    tiny, out = folder / "tiny", folder / "out"
    make_tiny_t5(tiny, read_texts(SAMPLE))
    shutil.copytree(tiny, out)
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        (out / name).unlink()
    load_tokenizer(str(tiny)).save(out, model_max_length=512)
    return out


def port_of(process: "subprocess.Popen[bytes]", log: Path) -> int:
    while process.poll() is None:
        if found := re.search(r"answers at http://\S+:(\d+)/", log.read_text()):
            return int(found[1])
        time.sleep(0.1)
    sys.exit(log.read_text())


class Load:
    """A rate of requests on a server."""

    def __init__(self, port: int, pid: int, args: argparse.Namespace) -> None:
        self.port, self.pid, self.args = port, pid, args
        self.questions = [text[:60] for text in read_texts(SAMPLE)][:100]
        self.expected: list[str] = []
        self.seconds: list[float] = []
        self.outcomes = Counter[str]()
        self.free: list[Connection] = []

    async def run(self) -> dict[str, Any]:
        for index in range(len(self.questions)):
            self.expected.append(await self.answer(index, stream=False))
        memory = [self.memory()]
        load, processor, own = os.getloadavg(), self.processor(), time.process_time()
        start = time.perf_counter()
        total, late = round(self.args.rate * self.args.seconds), 0.0
        asked: set[asyncio.Task[None]] = set()
        for index in range(total):
            due = start + index / self.args.rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            late = max(late, time.perf_counter() - due)
            task = asyncio.create_task(self.ask(index))
            asked.add(task)
            task.add_done_callback(asked.discard)
            if index % max(total // 12, 1) == 0:
                memory.append(self.memory())
        sent = time.perf_counter() - start
        await asyncio.gather(*asked)
        answered = time.perf_counter() - start
        memory.append(self.memory())
        metrics = await self.request("GET", "/metrics", b"")
        took = sorted(self.seconds)
        shares = {"median": 0.5, "95 %": 0.95, "99 %": 0.99}
        return {
            "load average before": [round(x, 1) for x in load],
            "requests": total,
            "outcomes": dict(self.outcomes),
            "sent a second": round(total / sent, 1),
            "answered a second": round(total / answered, 1),
            "latest request sent after its time": round(late, 3),
            "latency": {name: round(took[int(len(took) * p)], 3) for name, p in shares.items()}
            | {"most": round(took[-1], 3)},
            "processor seconds of the server": round(self.processor() - processor, 1),
            "processor seconds of this program": round(time.process_time() - own, 1),
            "memory of the server, MiB": [round(size / 1024**2) for size in memory],
            "left in the server": dict(
                re.findall(r"^duet_answers_(\w+) (\S+)$", metrics, re.MULTILINE)
            ),
        }

    async def ask(self, index: int) -> None:
        start = time.perf_counter()
        try:
            if index % 50 == 49:
                await self.leave(index)
                return
            text = await self.answer(index, stream=index % 10 == 9)
            is_right = text == self.expected[index % len(self.questions)]
            self.outcomes["right" if is_right else "another answer"] += 1
        except Exception as error:
            self.outcomes[f"{type(error).__name__} {error}"[:80]] += 1
        self.seconds.append(time.perf_counter() - start)

    async def answer(self, index: int, *, stream: bool) -> str:
        text = await self.request("POST", PATH, self.body(index, stream=stream))
        if not stream:
            return str(json.loads(text)["choices"][0]["message"]["content"])
        events = [json.loads(e) for e in re.findall(r"^data: ({.*)$", text, re.MULTILINE)]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

    async def leave(self, index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head("POST", PATH, self.body(index, stream=True)))
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        self.outcomes["left"] += 1

    def body(self, index: int, *, stream: bool) -> bytes:
        question = self.questions[index % len(self.questions)]
        messages = [{"role": "system", "content": "S."}, {"role": "user", "content": question}]
        body = {"messages": messages, "max_tokens": self.args.max_tokens, "stream": stream}
        return json.dumps(body).encode()

    async def request(self, method: str, path: str, body: bytes) -> str:
        """Return the body of a response of status 200, on a connection that is kept."""
        while self.free and self.free[-1][0].at_eof():
            self.free.pop()[1].close()
        if self.free:
            reader, writer = self.free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head(method, path, body))
        start = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if length := re.search(r"content-length: (\d+)", start):
            text = await reader.readexactly(int(length[1]))
        else:
            text = b""
            while size := int(await reader.readline(), 16):
                text += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        self.free.append((reader, writer))
        status = start.split()[1]
        if status != "200":
            raise ValueError(f"status {status}")
        return text.decode()

    def memory(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def processor(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def head(method: str, path: str, body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


if __name__ == "__main__":
    main()
