"""One command that tries on a GPU what the tests cannot try without one; writes a page of it.

    python scripts/gpu_check.py [--output docs/benchmarks/gpu.md]
    python scripts/gpu_check.py --tiny --output PAGE.md     # small shapes, also on a CPU

At most ten minutes on one device. Each section is by itself: one that fails is a line on the page,
and so is one that there was no time for. Exits with 1 where one failed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":  # as a script: the repository is where it is imported from
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.config import FitConfig, PrepareConfig
from pipeline.fit.device import data_sheet_peak, set_allocator, set_attention
from pipeline.fit.training.throughput import matmul_peak
from pipeline.fit.training.trainer import TrainerCallback
from scripts.tiny_t5 import make_tiny_t5, read_texts

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "raw" / "sample.json"
MINUTES = 10
LENGTHS = (152, 344, 712, 1096, 1544, 2008)
"""None of them met before: a kernel that plans for each shape shows it in the first pass."""
BASE = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "num_layers": 12}
XL = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32, "num_layers": 24}
TINY = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}


class DoneError(Exception):
    """Ends a training from within, when all is measured."""


@dataclass
class Check:
    """What the sections share."""

    tiny: bool
    folder: Path
    device: torch.device

    def config(self, shape: dict[str, int], name: str, **changes: Any) -> FitConfig:
        """Return the settings of a run on made-up long conversations, from fresh weights."""
        values: dict[str, Any] = {
            "data_path": str(self.prepared()),
            "model_name_or_path": str(self.model(TINY if self.tiny else shape)),
            "output_dir": str(self.folder / name),
            "from_scratch": True,
            "per_device_train_batch_size": 2 if self.tiny else 8,
            "bf16": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "eval_strategy": "no",
            "seed": 1,
        }
        return FitConfig(**values | changes)

    def model(self, shape: dict[str, int]) -> Path:
        """Return a folder with the config of a shape; no weights."""
        folder = self.folder / f"model-{shape['d_model']}"
        if not folder.exists():
            make_tiny_t5(folder, read_texts(SAMPLE), weights=False)
            path = folder / "config.json"
            sizes = shape | {"num_decoder_layers": shape["num_layers"]}
            sizes |= {} if self.tiny else {"vocab_size": 32_128}
            path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | sizes), "utf-8")
        return folder

    def prepared(self) -> Path:
        """Return a prepared folder whose rows are as long as the window."""
        from pipeline.prepare.stage import prepare

        texts = [text for text in read_texts(SAMPLE) if len(text) > 20]
        path = self.folder / "chats.json"
        if not path.exists():
            long = " ".join(texts)
            repeats = 1 if self.tiny else 1 + 20_000 // len(long)
            chats = [
                [
                    {"from": "human", "value": f"{i} {long * repeats}"},
                    {"from": "gpt", "value": f"{i} {long[: 100 if self.tiny else 3000]}"},
                ]
                for i in range(48 if self.tiny else 320)
            ]
            records = [{"id": f"c{i}", "conversations": turns} for i, turns in enumerate(chats)]
            path.write_text(json.dumps(records), "utf-8")
        return prepare(
            PrepareConfig(
                data_path=(str(path),),
                model_name_or_path=str(self.model(TINY)),
                output_dir=str(self.folder / "prepared"),
                model_max_length=96 if self.tiny else 2048,
                num_workers=1,
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small shapes, also on a CPU")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "gpu.md")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny runs on a CPU")
    set_allocator()
    set_attention()
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines, failed = [f"# On a GPU\n\n    {' '.join(['python', *sys.argv])}\n"], False
    with tempfile.TemporaryDirectory() as folder:
        check = Check(tiny=args.tiny, folder=Path(folder), device=device)
        for title, section in SECTIONS.items():
            lines.append(f"\n## {title}\n")
            if time.monotonic() - began > 60 * (MINUTES - 1):
                lines.append("No time was left for it.")
                continue
            print(title, file=sys.stderr)
            start = time.monotonic()
            try:
                lines += section(check)
            except Exception as error:
                failed = True
                lines.append(f"Failed: {type(error).__name__}: {str(error).splitlines()[0]}")
            lines.append(f"\n({time.monotonic() - start:.0f} s)")
            if device.type == "cuda":
                torch.cuda.empty_cache()
    write(args.output, "\n".join(lines) + "\n")
    sys.exit(failed)


def write(path: Path, text: str) -> None:
    """Write a page, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, "utf-8")
    beside.replace(path)


def machine(check: Check) -> Iterator[str]:
    """Name the device, and what it multiplies at."""
    name = torch.cuda.get_device_name() if check.device.type == "cuda" else "CPU"
    yield f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}."
    for dtype in (torch.bfloat16, torch.float32):
        sheet = data_sheet_peak(name, dtype)
        said = f"{sheet / 1e12:.0f} by the data sheet" if sheet else "no data sheet known"
        peak = matmul_peak(check.device, dtype) / 1e12
        yield f"- {dtype}: {peak:.3g} TFLOP/s measured, {said}"


def gpu_tests(check: Check) -> Iterator[str]:
    """Run the tests that are marked ``gpu``."""
    if check.device.type != "cuda":
        yield "Want a GPU."
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    yield f"    {done.stdout.strip().splitlines()[-1]}"
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}")


def attention_kernels(check: Check) -> Iterator[str]:
    """Name the kernels of each length; time a first pass against the next; look for NaN."""
    yield "| tokens | dropout | kernels | first pass, ms | next, ms | finite |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for length in (16, 24) if check.tiny else LENGTHS:
        for dropout in (0.0, 0.1):
            once = attention_pass(length, dropout, check.device)
            first, following = once(), once()
            with profiler() as profile:
                finite = once() > 0
            names = {e.key for e in kernels_of(profile, check.device) if is_attention(e.key)}
            said = ", ".join(sorted(name[:60] for name in names)) or "none of a known name"
            yield f"| {length} | {dropout} | {said} | {first:.1f} | {following:.1f} | {finite} |"


def attention_pass(length: int, dropout: float, device: torch.device) -> Callable[[], float]:
    """Return what runs attention forward and backward, and returns its milliseconds; 0: NaN."""
    from pipeline.fit.model.fast_paths.attention import Bias, attend

    query, key, value = (
        torch.randn(4, 12, length, 64, device=device, dtype=torch.bfloat16).requires_grad_()
        for _ in range(3)
    )
    position = torch.randn(1, 12, length, length, device=device).requires_grad_()
    joined = position.detach().bfloat16().expand(4, -1, -1, -1).contiguous()
    asked = (query, key, value, position)

    def once() -> float:
        start = time.perf_counter()
        out, _ = attend(
            torch.nn.Identity(),
            query,
            key,
            value,
            None,
            position_bias=Bias(joined, position),
            dropout=dropout,
        )
        grads = torch.autograd.grad(out.float().square().sum(), asked)
        synchronize(device)
        spent = 1e3 * (time.perf_counter() - start)
        return spent if all(bool(grad.isfinite().all()) for grad in grads) else 0.0

    return once


def is_attention(name: str) -> bool:
    return any(word in name.lower() for word in ("flash", "fmha", "attention", "cudnn"))


def kernels_of(profile: Any, device: torch.device) -> list[Any]:
    """Return what ran on the device itself; an operation that launched it counts it once more."""
    events = list(profile.key_averages())
    if device.type != "cuda":
        return events
    return [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]


def profiler() -> Any:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=kinds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Watch(TrainerCallback):
    """Times steps, profiles two of them, and ends the run after the last that is wanted."""

    def __init__(self, device: torch.device, *, profile: int = 0, last: int = 0) -> None:
        self._device, self._first, self._last = device, profile, last
        self.ends: list[float] = []
        self.profile: Any = None
        self.seconds = 0.0

    def on_step_begin(self, step: int) -> None:
        if step == self._first:
            synchronize(self._device)
            self.profile = profiler()
            self.profile.__enter__()
            self._start = time.perf_counter()

    def on_step_end(self, step: int, result: Any) -> None:
        self.ends.append(time.perf_counter())
        if self._first and step == self._first + 1:
            synchronize(self._device)
            self.seconds = time.perf_counter() - self._start
            self.profile.__exit__(None, None, None)
        if step == self._last:
            raise DoneError


def base_steps(check: Check) -> Iterator[str]:
    """Train Flan-T5-base at 2,048 tokens: shares of peak, and what two steps are made of."""
    from pipeline.fit.stage import fit

    steps = 6 if check.tiny else 30
    watch = Watch(check.device, profile=4 if check.tiny else 20)
    config = check.config(BASE, "base", max_steps=steps, logging_steps=steps // 3)
    out = fit(config, callback=watch)
    entries = json.loads((out / "trainer_state.json").read_text("utf-8"))["log_history"]
    yield "Before the profiler, and with it:\n"
    for entry in entries:
        if "loss" in entry:
            names = ("target_tokens_per_second", "mfu", "mfu_datasheet", "peak_memory_gib")
            values = ", ".join(f"{n} {entry[n]:.4g}" for n in names if n in entry)
            yield f"- step {entry['step']}: loss {entry['loss']:.4f}, {values}"
    calls = watch.profile.key_averages()
    events = kernels_of(watch.profile, check.device)
    on_gpu = check.device.type == "cuda"
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    total = sum(getattr(event, time_of) for event in events)
    yield (
        f"\nTwo steps: {watch.seconds:.3f} s, of which the device was idle "
        f"{max(0.0, 1 - total / 1e6 / watch.seconds):.1%} (gaps between kernels).\n"
    )
    casts = sum(event.count for event in calls if event.key == "aten::_to_copy")
    yield f"Casts: {casts:,} of {sum(event.count for event in calls):,} calls."
    yield "\n| kernel or operation | calls | ms | share |\n| --- | --- | --- | --- |"
    for event in sorted(events, key=lambda event: -getattr(event, time_of))[:12]:
        spent = getattr(event, time_of)
        yield f"| {event.key[:70]} | {event.count} | {spent / 1e3:.1f} | {spent / total:.1%} |"


def xl_memory(check: Check) -> Iterator[str]:
    """Train Flan-T5-xl with checkpointing for three steps: the peak beside the estimate."""
    from pipeline.fit.estimate.dry_run import dry_run
    from pipeline.fit.stage import fit

    config = check.config(
        XL, "xl", max_steps=3, gradient_checkpointing=True, per_device_train_batch_size=2
    )
    table = list(dry_run(config))
    yield from (f"    {line}" for line in table)
    if check.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(DoneError):
        fit(config, callback=Watch(check.device, last=3))
    if check.device.type == "cuda":
        yield f"\nMost in use: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of tensors."
    else:
        yield "\nThe peak wants a GPU."


def compiled(check: Check) -> Iterator[str]:
    """Train with ``--torch-compile``, and how long it takes to begin."""
    from pipeline.fit.stage import fit

    watch = Watch(check.device)
    if check.tiny:
        yield "Left out of the small run: a compiler may not be there."
        return
    start = time.perf_counter()
    out = fit(check.config(BASE, "compiled", max_steps=12, torch_compile=True), callback=watch)
    entries = json.loads((out / "trainer_state.json").read_text("utf-8"))["log_history"]
    last = [entry for entry in entries if "loss" in entry][-1]
    yield (
        f"First step after {watch.ends[0] - start:.1f} s. Step {last['step']}: loss "
        f"{last['loss']:.4f}, {last['target_tokens_per_second']:,.0f} target tokens/s, "
        f"mfu {last['mfu']:.3f}."
    )


def full_memory(check: Check) -> Iterator[str]:
    """Run out of memory in a sharded model; gradients must be right afterwards."""
    from accelerate import Accelerator

    from pipeline.fit.data.micro_batches import Shape
    from pipeline.fit.distributed.fsdp import Sharding, full_tensor, shard
    from pipeline.fit.estimate.memory_probe import MemoryProbe, full_batch
    from pipeline.fit.model.loading import build_model
    from pipeline.fit.model.loss import SummedTokenLoss
    from pipeline.tokenizer import load_tokenizer
    from scripts.ranks import free_port

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    backend = "nccl" if check.device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=0, world_size=1)
    try:
        config = check.config(BASE, "full")
        model: Any = build_model(config.model, load_tokenizer(f"{config.data_path[0]}/tokenizer"))
        sharded = shard(
            SummedTokenLoss(model),
            Sharding(layers=(), reshard=True),
            Accelerator(cpu=check.device.type == "cpu"),
        )
        batch = full_batch(Shape(2, 16, 8), 5, check.device)

        def gradients() -> list[torch.Tensor]:
            sharded.eval()  # no dropout: two passes are the same
            sharded(**batch).backward()
            found = [
                full_tensor(p.grad).clone() for p in sharded.parameters() if p.grad is not None
            ]
            sharded.zero_grad()
            return found

        before = gradients()
        if check.device.type == "cuda":
            rows = 4
            probe = MemoryProbe(sharded, Accelerator(), token_id=5)
            while probe.fits_in_memory(Shape(rows, 2048, 2048)):
                rows *= 2
            yield f"{rows} rows of 2,048 + 2,048 tokens are too many."
        else:
            yield "What is too much wants a GPU; a failure is simulated."
            handle = model.decoder.block[0].register_full_backward_pre_hook(_fail)
            fits = MemoryProbe(sharded, Accelerator(cpu=True), token_id=5).fits_in_memory(
                Shape(4, 16, 8)
            )
            handle.remove()
            if fits:
                raise RuntimeError("the failure went unseen")
        worst = max(
            float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
            for a, b in zip(before, gradients(), strict=True)
        )
        yield f"Gradients of the next pass differ by {worst:.1e} of the largest."
        if worst > 1e-3:
            raise RuntimeError("gradients are wrong after a failure")
    finally:
        torch.distributed.destroy_process_group()


def _fail(*_: Any) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


class Stop(TrainerCallback):
    """Sends this process SIGTERM in a step."""

    def on_step_begin(self, step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_and_resume(check: Check) -> Iterator[str]:
    """Stop a run by SIGTERM and resume it: the log must be that of a run that was not stopped."""
    from pipeline.fit.stage import fit

    logs = []
    for name in ("whole", "stopped"):
        config = check.config(TINY, name, max_steps=6, save_strategy="steps", save_steps=6)
        if name == "stopped":
            try:
                fit(config, callback=Stop())
            except SystemExit as ended:
                yield f"Stopped with exit code {ended.code}."
        out = fit(config)
        entries = json.loads((out / "trainer_state.json").read_text("utf-8"))["log_history"]
        logs.append([(e["loss"], e["grad_norm"]) for e in entries if "loss" in e])
    if logs[0] != logs[1]:
        raise RuntimeError(f"not the run that was not stopped: {logs[1]} and {logs[0]}")
    yield (
        "Losses and gradient norms of six steps are those of the run that was not stopped, "
        "to the bit."
    )


SECTIONS: dict[str, Callable[[Check], Iterator[str]]] = {
    "The machine": machine,
    "Tests that want a GPU": gpu_tests,
    "Attention's kernels": attention_kernels,
    "Flan-T5-base at 2,048 tokens": base_steps,
    "Flan-T5-xl with checkpointing": xl_memory,
    "Compiled": compiled,
    "Out of memory while sharded": full_memory,
    "SIGTERM and resume": stop_and_resume,
}


if __name__ == "__main__":
    main()
