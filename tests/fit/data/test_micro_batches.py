"""A step's rows are split without loss, within the budget, and balanced."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fit.data.micro_batches import MicroBatcher
from pipeline.fit.data.sampler import BatchSampler, IntArray
from pipeline.fit.flops import FLAN_T5_BASE, ModelFlops
from tests.fit.data.test_sampler import like_sharegpt

BASE = ModelFlops.of(FLAN_T5_BASE)
lengths = st.lists(st.tuples(st.integers(1, 2048), st.integers(1, 2048)), min_size=1, max_size=80)


def micro_batcher(encoder: Any, decoder: Any, **changes: Any) -> MicroBatcher:
    values: dict[str, Any] = {"flops": BASE, "max_rows": 8} | changes
    return MicroBatcher(np.array(encoder), np.array(decoder), **values)


@given(
    lengths=lengths,
    max_rows=st.integers(1, 9),
    processes=st.integers(1, 6),
    multiple=st.sampled_from([1, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_row_once_and_never_over_the_budget(
    lengths: list[tuple[int, int]], max_rows: int, processes: int, multiple: int, seed: int
) -> None:
    encoder, decoder = np.array(lengths).T
    batcher = micro_batcher(encoder, decoder, max_rows=max_rows, multiple=multiple)
    rows = np.random.default_rng(seed).permutation(len(lengths))[: len(lengths) // 2 + 1]
    balanced = batcher.balance(rows, processes)
    assert {len(parts) for parts in balanced} == {processes}
    together = np.concatenate([part for parts in balanced for part in parts])
    assert sorted(together.tolist()) == sorted(rows.tolist())
    longest = [-(-side.max() // multiple) * multiple for side in (encoder, decoder)]
    for piece in [part for parts in balanced for part in parts if len(part)] + batcher.split(rows):
        for side, full in zip((encoder, decoder), longest, strict=True):
            padded = -(-side[piece].max() // multiple) * multiple
            assert len(piece) * padded <= max_rows * full


@given(lengths=lengths, processes=st.integers(1, 6))
def test_places_are_empty_only_where_no_row_is_left_to_share(
    lengths: list[tuple[int, int]], processes: int
) -> None:
    encoder, decoder = np.array(lengths).T
    balanced = micro_batcher(encoder, decoder).balance(np.arange(len(lengths)), processes)
    for process in range(processes):
        sizes = [len(parts[process]) for parts in balanced]
        assert 0 not in sizes or max(sizes) <= 1


def test_short_rows_are_many_at_once() -> None:
    encoder = [2048] * 4 + [16] * 400
    pieces = micro_batcher(encoder, encoder, max_rows=2).split(np.arange(404))
    # 2 * 2,048 tokens are 256 rows of 16.
    assert [len(piece) for piece in pieces] == [2, 2, 256, 144]


def test_rows_of_like_length_are_together() -> None:
    encoder = np.array([1000, 90, 1100, 91, 1200, 92, 1300, 93])
    decoder = np.array([1500, 1500, 5, 5, 1501, 1501, 6, 6])
    pieces = micro_batcher(encoder, decoder).split(np.arange(8))
    assert [sorted(piece.tolist()) for piece in pieces] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_equal_rows_are_cut_into_full_batches_alone() -> None:
    pieces = micro_batcher([100] * 20, [50] * 20, max_rows=8).split(np.arange(20))
    assert sorted(map(len, pieces)) == [4, 8, 8]


def test_a_single_process_takes_the_cut_as_it_is() -> None:
    encoder, decoder = like_sharegpt(64)
    batcher = micro_batcher(encoder, decoder)
    balanced = batcher.balance(np.arange(64), 1)
    assert [part.tolist() for (part,) in balanced] == [
        part.tolist() for part in batcher.split(np.arange(64))
    ]


def test_fewer_rows_than_processes_leave_some_without() -> None:
    (parts,) = micro_batcher([3, 5], [3, 5]).balance(np.arange(2), 3)
    assert sorted(len(part) for part in parts) == [0, 1, 1]


def test_one_long_row_does_not_cut_the_others_up() -> None:
    (first, *others) = micro_batcher([2048] + [8] * 8, [2048] + [8] * 8).balance(np.arange(9), 2)
    assert sorted(map(len, first)) == [1, 8]
    assert not others


def padding(plan: BatchSampler, batcher: MicroBatcher, processes: int) -> tuple[float, float]:
    """Return padded over ideal operations, and the slowest process over the mean, of all steps."""
    useful = padded = slowest = 0.0
    for step in range(plan.steps_per_epoch):
        rows = plan.rows_of(step)
        loads = np.zeros(processes)
        for parts in batcher.balance(rows, processes):
            loads += [batcher.cost(part) if len(part) else 0.0 for part in parts]
        useful, padded = useful + batcher.useful(rows), padded + loads.sum()
        slowest += loads.max() * processes
    return padded / useful, slowest / padded


@pytest.mark.parametrize(("global_batch_size", "group"), [(8, True), (128, True), (128, False)])
def test_padding_is_a_tenth_at_most(global_batch_size: int, group: bool) -> None:
    encoder, decoder = like_sharegpt(8_192)
    plan = BatchSampler(
        encoder, decoder, global_batch_size=global_batch_size, seed=0, group_by_length=group
    )
    ratio, _ = padding(plan, micro_batcher(encoder, decoder), 1)
    assert ratio <= (1.05 if group else 1.10)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_have_as_much_to_do(processes: int) -> None:
    encoder, decoder = like_sharegpt(4_096)
    plan = BatchSampler(encoder, decoder, global_batch_size=128, seed=0)
    ratio, imbalance = padding(plan, micro_batcher(encoder, decoder), processes)
    assert imbalance <= 1.05
    assert ratio * imbalance <= 1.10


def test_the_budget_is_of_the_longest_rows_there_are() -> None:
    """Memory that held so many of the user's longest rows must do."""
    encoder: IntArray = np.array([100, 30])
    batcher = micro_batcher(encoder, np.array([20, 40]), max_rows=3, multiple=8)
    assert batcher.fullest == (3, 104, 40)
