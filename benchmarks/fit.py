"""``fit`` against the stock ``Seq2SeqTrainer``: target tokens a second, and held-out bits by time.

    just bench fit PREPARED WORK [--shape base --bf16] [--write FOLDER]

``PREPARED`` is a prepared folder with a eval split; results are kept in the folder ``WORK``, and
what lies there already is not measured again, so a run that was stopped resumes with the same
command. Each side runs in a process of its own, all in turn, from the same weights; the time is
that of its optimizer steps (``fit_side.py``). First how fast: a few steps of each side, repeated.
Then how good: each side trains for ``--minutes``, and the weights that it had at times are
evaluated afterwards, all by the same code. A side that was stopped in the middle starts again.

``--quality-sides ours ours-muon`` shows ``--optim muon`` against ``--optim``, at equal time and
each at a rate of its own (``docs/benchmarks/muon.md``).

With ``--quality-sides`` and the three settings of the reference, one side trains on rows that
the reference's preprocessing made of the same conversations (``fit_reference.py``).
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fit_page import write
from fit_reference import BYTES, reference_folder

SIDE = Path(__file__).with_name("fit_side.py")
SIDES = ("ours", "ours-ungrouped", "ours-muon", "random", "grouped")
DEFAULT_SIDES = [side for side in SIDES if side != "ours-muon"]
REFERENCE = "reference"
SHAPES = {
    "tiny": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4, "num_layers": 2},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
    "xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32, "num_layers": 24},
}
"""Of fresh models: a small one for a CPU, Flan-T5-base and Flan-T5-xl."""
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Makes the C library's allocator map nothing anew that was in use before."""
FOREVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=DEFAULT_SIDES)
    parser.add_argument("--rows", type=int, nargs="*", default=[8, 32], help="global batch sizes")
    parser.add_argument("--rows-at-once", type=int, default=8, help="of full length, on the device")
    parser.add_argument("--rows-per-run", type=int, default=256, help="rows that are timed")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10, help="of each side; 0: leave it out")
    parser.add_argument("--snapshots", type=int, default=5, help="in that time, evaluated")
    parser.add_argument("--quality-rows", type=int, default=8, help="global batch size, by time")
    parser.add_argument(
        "--quality-sides",
        nargs="+",
        choices=(*SIDES, REFERENCE),
        default=DEFAULT_SIDES,
        help="by time",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--muon-learning-rate", type=float, default=5e-3, help="of ours-muon")
    parser.add_argument("--warmup-steps", type=int, default=20)
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: of all threads, for a CPU that others use too; then with one thread",
    )
    parser.add_argument(
        "--keep-freed",
        action="store_true",
        help="on a CPU: let processes keep memory that they freed, which spares page faults",
    )
    parser.add_argument("--optim", default="adamw_torch_fused")
    parser.add_argument("--reference-python", help="interpreter of an environment with fschat")
    parser.add_argument("--records", type=Path, help="the file that PREPARED was made of")
    parser.add_argument("--reference-tokenizer", help="folder with T5's spiece.model")
    parser.add_argument("--write", type=Path, help="folder for fit.md and fit.svg")
    args = parser.parse_args()
    for rows in (*args.rows, args.quality_rows):
        if rows % args.rows_at_once:
            parser.error(f"global batch size {rows}: give a multiple of --rows-at-once")
    speed(args)
    quality(args)
    write([args.work], args.write)


def speed(args: argparse.Namespace) -> None:
    """Time a few steps of each side in turn, and this as often as asked."""
    for rows in args.rows:
        for run in range(args.runs):
            for side in args.sides:
                values = {"rows": rows, "steps": args.rows_per_run // rows, "seconds": FOREVER}
                settings = settings_of(args, side, run, model_of(args, 0)) | values
                path = args.work / "speed" / f"{rows}-{run}-{side}.json"
                run_side(settings, path)


def quality(args: argparse.Namespace) -> None:
    """Train each side for some time, and evaluate the weights that it had meanwhile."""
    if not args.minutes:
        return
    seconds = args.minutes * 60
    marks = [seconds * i / args.snapshots for i in range(args.snapshots + 1)]
    for seed in args.seeds:
        for side in args.quality_sides:
            values = {"rows": args.quality_rows, "steps": FOREVER, "seconds": seconds}
            settings = settings_of(args, side, seed, model_of(args, seed)) | values
            path = args.work / "quality" / f"{seed}-{side}.json"
            result = run_side(settings | {"marks": marks}, path)
            evaluate(path, result)


def settings_of(args: argparse.Namespace, side: str, seed: int, model: Path) -> dict[str, Any]:
    names = ["bf16", "rows_at_once", "learning_rate", "warmup_steps", "optim"]
    names += ["clock", "keep_freed"]
    names += ["muon_learning_rate"] if side == "ours-muon" else []
    return {name: getattr(args, name) for name in names} | {
        "side": side,
        "seed": seed,
        "prepared": str((prepared_of(args) if side == REFERENCE else args.prepared).resolve()),
        "model": str(model.resolve()),
        "marks": [],
    }


def prepared_of(args: argparse.Namespace) -> Path:
    """Return the folder of the reference's rows, which is made if it is not there."""
    return reference_folder(
        args.reference_python,
        args.records,
        args.reference_tokenizer,
        args.prepared,
        args.work / "reference",
    )


def run_side(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Run a side in a process of its own, unless its result is there."""
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["settings"] == settings:
            return dict(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in (path.with_suffix(".output"), path.with_suffix("")):
        shutil.rmtree(folder, ignore_errors=True)
    path.with_suffix(".settings").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, str(SIDE), str(path.with_suffix(".settings")), str(path)]
    variables = {"TOKENIZERS_PARALLELISM": "false"} | (KEEP_FREED if settings["keep_freed"] else {})
    done = subprocess.run(
        command,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{settings['side']} ended with exit code {done.returncode}:\n{done.stderr}")
    result = json.loads(path.read_text(encoding="utf-8"))
    rate = result["target_tokens"] / result["seconds"]
    print(f"{path.stem}: {result['steps']} steps, {rate:,.0f} target tokens/s", file=sys.stderr)
    return dict(result)


def model_of(args: argparse.Namespace, seed: int) -> Path:
    """Return a folder with a fresh model of the shape; each seed has one, all sides the same."""
    from pipeline.fit.checkpoint.pretrained import save_model
    from pipeline.fit.model.embedding import rows_for
    from pipeline.fit.model.loading import init_model
    from pipeline.tokenizer import load_tokenizer

    folder = args.work / f"{args.shape}-{seed}"
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(str(args.prepared / "tokenizer"))
    rows = {"vocab_size": rows_for(tokenizer.vocab_size)}
    shape = SHAPES[args.shape] | rows | {"feed_forward_proj": "gated-gelu"}
    ids = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = {"model_type": "t5", "tie_word_embeddings": False} | shape | ids
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = init_model(str(folder), tokenizer.vocab_size, seed=seed)
    save_model(folder, model, args.prepared / "tokenizer")
    return folder


def evaluate(path: Path, result: dict[str, Any]) -> None:
    """Add to each snapshot what it reaches on the eval split; its weights then go."""
    from accelerate import Accelerator

    from pipeline.fit.data.dataset import SupervisedDataset
    from pipeline.fit.data.loader import micro_batcher_for
    from pipeline.fit.model.loading import load_trained
    from pipeline.fit.model.loss import SummedTokenLoss
    from pipeline.fit.training.evaluate import Evaluator, count_target_bytes
    from pipeline.tokenizer import load_tokenizer

    prepared = result["settings"]["prepared"]
    data, tokenizer = SupervisedDataset(prepared, "eval"), load_tokenizer(f"{prepared}/tokenizer")
    accelerator, evaluator = Accelerator(), None
    if "eval_bytes" not in result:  # the ids of the reference are not ours to decode
        counted = data.manifest.counts.get(BYTES)
        result["eval_bytes"] = counted or count_target_bytes(data, tokenizer)
    for snapshot in result["snapshots"]:
        if "bits_per_byte" in snapshot:
            continue
        model = load_trained(Path(snapshot["folder"])).to(accelerator.device)
        if evaluator is None:
            micro_batcher = micro_batcher_for(data, model.config, 8, accelerator.device)
            pad = model.config.pad_token_id
            evaluator = Evaluator(data, micro_batcher, pad, tokenizer, accelerator)
        values = evaluator.run(SummedTokenLoss(model))
        bits = values["eval_loss"] * int(data.lengths[1].sum()) / math.log(2)
        snapshot["bits_per_byte"] = bits / result["eval_bytes"]
        path.write_text(json.dumps(result, indent=2), encoding="utf-8")
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)


if __name__ == "__main__":
    main()
