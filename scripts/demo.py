"""The whole way from raw conversations to an answer, in about a minute and without network.

    python scripts/demo.py

It makes a tiny random T5, then runs the four commands that a user would run, each printed before
it starts: prepare -> inspect -> fit -> chat. A model of this size learns what an answer looks like
and not what is true: what counts is that the loss falls and that every step meets the next.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from tiny_t5 import make_tiny_t5, read_texts

ROOT = Path(__file__).resolve().parent.parent
RAW = Path("data/raw")
DEMO = Path("data/processed/demo")
TINY, OUT = DEMO / "tiny-t5", DEMO / "out"

PREPARE = f"""prepare --data-path {RAW} --model-name-or-path {TINY} --output-dir data/processed
    --model-max-length 256 --eval-fraction 0.1"""
FIT = f"""--model-name-or-path {TINY} --output-dir {OUT} --max-steps 96
    --per-device-train-batch-size 8 --learning-rate 5e-3 --lr-scheduler-type constant_with_warmup
    --warmup-steps 5 --logging-steps 12 --save-steps 48 --eval-steps 48 --seed 0"""
QUESTION = "What is the capital of Australia?"


def main() -> None:
    """Run the demonstration in the repository's root."""
    start = time.monotonic()
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)

    say("1. A tiny T5 with random weights, and a vocabulary trained on the sample")
    make_tiny_t5(TINY, read_texts(RAW / "sample.json"), vocab_size=2000, d_model=96)
    print(TINY)

    say("2. Prepare: conversations -> pairs of question and answer -> tokens on disk")
    prepared = duet(*PREPARE.split(), capture=True).strip()
    if "\n" in prepared or not (Path(prepared) / "manifest.json").is_file():
        fail(f"prepare should print one prepared folder, but printed {prepared!r}")
    print(prepared)

    say("3. Inspect: what stands in the prepared folder")
    duet("inspect", prepared, "--rows", "3")

    say("4. Fit: 96 steps of 8 pairs")
    duet("fit", "--data-path", prepared, *FIT.split())

    say("5. Chat: one question to the trained model")
    duet("chat", str(OUT), "--message", QUESTION, "--temperature", "0.7")

    first, last = losses(OUT / "trainer_state.json")
    say(f"The loss fell from {first:.2f} to {last:.2f}, in {time.monotonic() - start:.0f} s in all")
    print(
        "The answer makes no sense yet: the model is hundreds of times smaller than one that\n"
        "does, and saw ninety pairs. For a real one, with your own export:\n\n"
        "  source .venv/bin/activate\n"
        "  PREPARED=$(duet prepare --data-path my_export.json --output-dir data/processed \\\n"
        "      --model-name-or-path google/flan-t5-base --eval-fraction 0.01)\n"
        "  duet fit --data-path $PREPARED --model-name-or-path google/flan-t5-base \\\n"
        "      --output-dir my-model --bf16 True --num-train-epochs 3\n"
        "  duet chat my-model"
    )


def duet(*arguments: str, capture: bool = False) -> str:
    """Print and run one command; end here if it fails. Return its output if ``capture``."""
    print(f"$ python -m pipeline {shlex.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        # The model is too small for threads: they cost more than they give.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE if capture else None,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        fail(f"{arguments[0]} ended with exit code {done.returncode}; its message is above")
    return done.stdout or ""


def losses(path: Path) -> tuple[float, float]:
    """Return the first and the last training loss in a ``trainer_state.json``."""
    if not path.is_file():
        fail(f"fit wrote no {path}")
    history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    found = [float(entry["loss"]) for entry in history if "loss" in entry]
    if len(found) < 2:
        fail(f"{path} has {len(found)} entries with a loss, which are too few to compare")
    if not found[-1] < found[0]:
        fail(f"the loss did not fall: {found[0]:.3f} at first, {found[-1]:.3f} at last")
    return found[0], found[-1]


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


def fail(text: str) -> NoReturn:
    """End the demonstration with one line and exit code 1."""
    sys.exit(f"demo: {text}")


if __name__ == "__main__":
    main()
