"""The order is a function of seed, epoch and rows; a step's rows are cut without loss."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fit.batching import StepPlan, cut_by_length, epoch_order, micro_batches

counts = st.integers(1, 60)
seeds = st.integers(0, 2**32)


@given(num_rows=counts, rows_per_step=counts, seed=seeds)
def test_an_epoch_takes_each_row_once(num_rows: int, rows_per_step: int, seed: int) -> None:
    plan = StepPlan(num_rows=num_rows, rows_per_step=rows_per_step, seed=seed)
    assert plan.steps_per_epoch == math.ceil(num_rows / rows_per_step)
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch
        steps = [plan.rows_of(first + i) for i in range(plan.steps_per_epoch)]
        assert sorted(np.concatenate(steps).tolist()) == list(range(num_rows))
        assert {len(rows) for rows in steps[:-1]} <= {rows_per_step}
        assert 1 <= len(steps[-1]) <= rows_per_step


def test_epochs_and_seeds_differ_and_the_same_are_the_same() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert np.array_equal(epoch_order(50, 3, 1), epoch_order(50, 3, 1))
    assert not np.array_equal(epoch_order(50, 0, 0), np.arange(50))


@given(
    lengths=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=70),
    max_rows=st.integers(1, 9),
    processes=st.integers(1, 5),
    seed=seeds,
)
def test_micro_batches_hold_each_row_of_the_step_once(
    lengths: list[tuple[int, int]], max_rows: int, processes: int, seed: int
) -> None:
    encoder, decoder = np.array(lengths, np.int64).T
    rows = np.random.default_rng(seed).permutation(len(lengths))[: len(lengths) // 2 + 1]
    dealt = micro_batches(rows, encoder, decoder, max_rows=max_rows, processes=processes)
    assert len(dealt) == math.ceil(len(rows) / (max_rows * processes))
    assert {len(parts) for parts in dealt} == {processes}
    sizes = [len(part) for parts in dealt for part in parts]
    assert max(sizes) <= max_rows
    assert max(sizes) - min(sizes) <= 1 or min(sizes) == 0
    together = np.concatenate([part for parts in dealt for part in parts])
    assert sorted(together.tolist()) == sorted(rows.tolist())


def test_rows_of_like_length_are_together() -> None:
    encoder = np.array([10, 90, 11, 91, 12, 92, 13, 93], np.int64)
    decoder = np.array([50, 50, 5, 5, 51, 51, 6, 6], np.int64)
    pieces = cut_by_length(np.arange(8), encoder, decoder, 4)
    assert [sorted(piece.tolist()) for piece in pieces] == [[2, 6], [0, 4], [3, 7], [1, 5]]


def test_the_longest_do_not_all_go_to_one_process() -> None:
    lengths = np.arange(16, dtype=np.int64)
    dealt = micro_batches(np.arange(16), lengths, lengths, max_rows=4, processes=2)
    loads = [sum(int(lengths[parts[p]].max()) for parts in dealt) for p in range(2)]
    assert loads[0] == loads[1]


def test_fewer_rows_than_processes_leave_some_without() -> None:
    lengths = np.array([3, 5], np.int64)
    (parts,) = micro_batches(np.arange(2), lengths, lengths, max_rows=8, processes=3)
    assert sorted(len(part) for part in parts) == [0, 1, 1]
