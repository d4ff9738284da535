"""How much of its operations `fit` spends on padding, on the rows of a prepared folder.

    python benchmarks/padding.py PREPARED [--per-device-train-batch-size 8]

Padded operations over those without padding, by the sizes of a Flan-T5-base, whose shape a T5 of
another size shares. No model, no device: what counts are the lengths. Beside `fit` stand the
orders that stock trainers have, in batches of the same number of rows.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.micro_batches import MicroBatcher
from pipeline.fit.data.sampler import BatchSampler, IntArray, epoch_order
from pipeline.fit.estimate.step_costs import cost_of_steps
from pipeline.fit.flops import FLAN_T5_BASE, ModelFlops
from pipeline.report.dataset.padding import stock_orders, stock_ratio
from pipeline.report.dataset.rows import Lengths

FLOPS = ModelFlops.of(FLAN_T5_BASE)
ROWS_PER_STEP = (8, 16, 64, 128, 512)
PROCESSES = (1, 2, 4, 8)
MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--per-device-train-batch-size", type=int, default=8, dest="batch")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--rows", type=int, default=32_768, help="rows whose steps are cut")
    args = parser.parse_args()
    encoder, decoder = SupervisedDataset(args.prepared).lengths
    print(f"{len(encoder):,} rows, batches of {args.batch}, padded / useful operations")
    lengths = Lengths(encoder, decoder)
    for name, order in stock_orders(encoder, args.batch, args.seed).items():
        print(f"{name:<34}{stock_ratio(lengths, order, args.batch, FLOPS):>6.3f}")
    micro_batcher = MicroBatcher(encoder, decoder, flops=FLOPS, max_rows=args.batch)
    columns = "".join(f"{f'{n} process' + 'es' * (n > 1):>28}" for n in PROCESSES)
    print(f"{'global batch':<16}{columns}\n{'':<16}", end="")
    print("".join(f"{'padded  slowest  rounds':>28}" for _ in PROCESSES))
    for group in (True, False):
        print(f"--{'' if group else 'no-'}group-by-length")
        for global_batch_size in ROWS_PER_STEP:
            plan = BatchSampler(
                encoder,
                decoder,
                global_batch_size=global_batch_size,
                seed=args.seed,
                group_by_length=group,
            )
            cells = "".join(cell(plan, micro_batcher, n, args.rows) for n in PROCESSES)
            print(f"{global_batch_size:>13,}   {cells}", flush=True)
    print_speed(encoder, decoder)


def cell(plan: BatchSampler, micro_batcher: MicroBatcher, processes: int, rows: int) -> str:
    """Return padding, the slowest process over the mean, and micro-batches of each process."""
    if processes > plan.global_batch_size:
        return f"{'-':>28}"
    count = max(min(plan.steps_per_epoch, rows // plan.global_batch_size), 1)
    steps = np.linspace(0, plan.steps_per_epoch - 1, count).astype(int).tolist()
    costs = cost_of_steps(map(plan.rows_of, steps), micro_batcher, processes)
    slowest = costs.slowest * processes / costs.padded
    return f"{costs.padding:>12.3f}{slowest:>9.3f}{costs.rounds / costs.steps:>7.2f}"


def print_speed(encoder: IntArray, decoder: IntArray) -> None:
    """Print the time that the order of a million rows of these lengths takes."""
    some = np.random.default_rng(0).integers(0, len(encoder), MILLION)
    start = time.perf_counter()
    epoch_order(encoder[some], decoder[some], global_batch_size=8, seed=0, epoch=0)
    print(f"order of a million rows: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
