"""Runs two commits on the golden rows: a refactoring must give the same losses and gradient norms.

    python scripts/loss_compare.py REV_A REV_B [--steps 6]

``REV_B`` may be ``.``, the working tree as it is. Each side trains the golden model from scratch on
the golden rows, which its own store writes in its own schema, with several micro-batches a step.
Exits with 1 if the two differ.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
FIT = """--from-scratch --max-steps {steps} --gradient-accumulation-steps 2
    --per-device-train-batch-size 2
    --learning-rate 1e-2 --logging-steps 1 --save-strategy no --eval-strategy no --seed 1"""

PREPARE = """
import json, sys
from pathlib import Path
from pipeline.tokenizer import load_tokenizer
from tests.fit.helpers import write_prepared
rows = json.loads(Path(sys.argv[1]).read_text("utf-8"))
write_prepared(Path(sys.argv[3]), load_tokenizer(sys.argv[2]), {"train": rows})
"""
"""Run by each revision: the same rows as a prepared folder of its own."""

Log = list[tuple[int, float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revisions", nargs=2, metavar="REV")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            losses(revision, Path(folder) / str(i), args.steps)
            for i, revision in enumerate(args.revisions)
        )
    print(f"step  loss, grad norm: {args.revisions[0]:<26}{args.revisions[1]}")
    for (step, *a), (_, *b) in zip(first, second, strict=True):
        print(f"{step:>4}  {a[0]!r:<22} {a[1]!r:<22} {'=' if a == b else f'{b[0]!r} {b[1]!r}'}")
    if first != second:
        sys.exit("the two differ")


def losses(revision: str, folder: Path, steps: int) -> Log:
    """Return (step, loss, gradient norm) of each step of a revision."""
    tree = ROOT
    folder.mkdir()
    if revision != ".":
        tree = folder / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
    try:
        output, prepared = folder / "out", folder / "prepared"
        environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
        run = functools.partial(
            subprocess.run, check=True, cwd=tree, env=environment, stdout=subprocess.DEVNULL
        )
        rows, model = GOLDEN / "checkpoint" / "rows.json", GOLDEN / "model"
        run([sys.executable, "-c", PREPARE, str(rows), str(model), str(prepared)])
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "fit",
            "--data-path",
            str(prepared),
            "--model-name-or-path",
            str(model),
            "--output-dir",
            str(output),
            *FIT.format(steps=steps).split(),
        ]
        run(command)
    finally:
        if revision != ".":
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    return [(e["step"], e["loss"], e["grad_norm"]) for e in state["log_history"] if "loss" in e]


if __name__ == "__main__":
    main()
