"""What a server takes: a steady rate of requests for a while; memory and answers are watched.

    just bench serve [MODEL] [--rate 200] [--seconds 60] [--max-tokens 16]

MODEL is a trained folder; without one, a tiny random T5 is made. The server is ``duet serve`` in a
process of its own. Requests are sent when their time comes, whether or not earlier ones are
answered; a tenth of them as streams, a fiftieth is dropped by the client at once. Every answer must
be the one that was given to the same question before the load. Prints JSON: the rate that was
sent and answered, latencies in seconds, processor seconds and memory of the server.
"""

import argparse
import asyncio
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from scripts.tiny_t5 import SAMPLE, make_tiny_t5, read_texts  # noqa: E402

PATH = "/v1/chat/completions"
CONNECTIONS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--max-queue", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or tiny_model(Path(folder))
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "pipeline", "serve", str(model), "--port", "0"]
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, "--max-queue", str(args.max_queue)], stderr=file, cwd=ROOT
            )
        try:
            load = Load(url_of(process, log), process.pid, args)
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


def url_of(process: "subprocess.Popen[bytes]", log: Path) -> str:
    while process.poll() is None:
        if found := re.search(r"answers at (http://\S+:\d+)/", log.read_text()):
            return found[1]
        time.sleep(0.1)
    sys.exit(log.read_text())


class Load:
    """A rate of requests on a server."""

    def __init__(self, url: str, pid: int, args: argparse.Namespace) -> None:
        self.url, self.pid, self.args = url, pid, args
        texts = [text[:200] for text in read_texts(SAMPLE)]
        self.questions = texts[: min(len(texts), 100)]
        self.expected: list[str] = []
        self.seconds: list[float] = []
        self.outcomes = Counter[str]()

    def body(self, index: int, *, stream: bool = False) -> dict[str, Any]:
        message = {"role": "user", "content": self.questions[index % len(self.questions)]}
        return {"messages": [message], "max_tokens": self.args.max_tokens, "stream": stream}

    async def run(self) -> dict[str, Any]:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS)
        async with httpx2.AsyncClient(base_url=self.url, limits=limits, timeout=120) as client:
            for index in range(len(self.questions)):
                response = await client.post(PATH, json=self.body(index))
                self.expected.append(response.json()["choices"][0]["message"]["content"])
            memory = [self.memory()]
            processor, own = self.processor(), time.process_time()
            start = time.perf_counter()
            asked: set[asyncio.Task[None]] = set()
            total = round(self.args.rate * self.args.seconds)
            late = 0.0
            for index in range(total):
                due = start + index / self.args.rate
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                late = max(late, time.perf_counter() - due)
                task = asyncio.create_task(self.ask(client, index))
                asked.add(task)
                task.add_done_callback(asked.discard)
                if index % max(round(self.args.rate * self.args.seconds / 12), 1) == 0:
                    memory.append(self.memory())
            sent = time.perf_counter() - start
            await asyncio.gather(*asked)
            answered = time.perf_counter() - start
            memory.append(self.memory())
            waiting = re.findall(
                r"^duet_answers_(\w+) (\S+)$", (await client.get("/metrics")).text, re.MULTILINE
            )
        took = sorted(self.seconds)
        shares = {"median": 0.5, "95 %": 0.95, "99 %": 0.99}
        return {
            "load average before": os.getloadavg(),
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
            "memory of this program, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "left in the server": dict(waiting),
        }

    async def ask(self, client: httpx2.AsyncClient, index: int) -> None:
        start = time.perf_counter()
        try:
            if index % 50 == 49:
                await self.leave(client, index)
                return
            text = await (self.stream if index % 10 == 9 else self.whole)(client, index)
            is_right = text == self.expected[index % len(self.questions)]
            self.outcomes["right" if is_right else "another answer"] += 1
        except Exception as error:
            self.outcomes[f"{type(error).__name__} {error}"[:80]] += 1
        self.seconds.append(time.perf_counter() - start)

    async def whole(self, client: httpx2.AsyncClient, index: int) -> str:
        response = await client.post(PATH, json=self.body(index))
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])

    async def stream(self, client: httpx2.AsyncClient, index: int) -> str:
        pieces = []
        async with client.stream("POST", PATH, json=self.body(index, stream=True)) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    pieces.append(delta.get("content", ""))
        return "".join(pieces)

    async def leave(self, client: httpx2.AsyncClient, index: int) -> None:
        async with client.stream("POST", PATH, json=self.body(index, stream=True)) as response:
            response.raise_for_status()
        self.outcomes["left"] += 1

    def memory(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def processor(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
