"""Runs two commits on the golden rows: a refactoring must give the same losses and gradient norms.

    python scripts/loss_compare.py REV_A REV_B [--steps 6]

``REV_B`` may be ``.``, the working tree as it is. Each side trains the golden model from scratch on
``tests/golden/prepared``, with several micro-batches a step. Exits with 1 if the two differ.
"""

import argparse
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
    if revision != ".":
        tree = folder / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
    try:
        output = folder / "out"
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "fit",
            "--data-path",
            str(GOLDEN / "prepared"),
            "--model-name-or-path",
            str(GOLDEN / "model"),
            "--output-dir",
            str(output),
            *FIT.format(steps=steps).split(),
        ]
        environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, cwd=tree, env=environment, stdout=subprocess.DEVNULL)
    finally:
        if revision != ".":
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    return [(e["step"], e["loss"], e["grad_norm"]) for e in state["log_history"] if "loss" in e]


if __name__ == "__main__":
    main()
