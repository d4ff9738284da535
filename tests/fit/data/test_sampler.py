"""The order is a function of lengths, global batch size, seed and epoch; each row comes once."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fit.data import sampler as batching
from pipeline.fit.data.sampler import (
    BatchSampler,
    IntArray,
    epoch_order,
    group_alike,
    group_sizes,
    windows_of,
)

seeds = st.integers(0, 2**32 - 1)
sides = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 70_000)), min_size=1, max_size=300)


def arrays(lengths: list[tuple[int, int]]) -> tuple[IntArray, IntArray]:
    encoder, decoder = np.array(lengths, np.int64).T
    return encoder, decoder


def like_sharegpt(count: int, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Return lengths spread as real conversations are: most histories fill the window."""
    random = np.random.default_rng(seed)
    encoder = np.minimum(random.lognormal(7.2, 1.0, count), 2048).astype(np.int64)
    decoder = np.minimum(random.lognormal(5.6, 1.0, count), 2048).astype(np.int64)
    return np.maximum(encoder, 1), np.maximum(decoder, 1)


@given(lengths=sides, global_batch_size=st.integers(1, 90), seed=seeds, group=st.booleans())
def test_an_epoch_takes_each_row_once_in_steps_of_exactly_so_many(
    lengths: list[tuple[int, int]], global_batch_size: int, seed: int, group: bool
) -> None:
    num_rows = len(lengths)
    plan = BatchSampler(
        *arrays(lengths), global_batch_size=global_batch_size, seed=seed, group_by_length=group
    )
    assert plan.steps_per_epoch == math.ceil(num_rows / global_batch_size)
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch
        steps = [plan.rows_of(first + i) for i in range(plan.steps_per_epoch)]
        assert sorted(np.concatenate(steps).tolist()) == list(range(num_rows))
        assert {len(rows) for rows in steps[:-1]} <= {global_batch_size}
        assert len(steps[-1]) == num_rows - global_batch_size * (plan.steps_per_epoch - 1)


@given(lengths=sides, global_batch_size=st.integers(1, 90), seed=seeds, epoch=st.integers(0, 9))
def test_the_order_depends_on_nothing_else(
    lengths: list[tuple[int, int]], global_batch_size: int, seed: int, epoch: int
) -> None:
    def order() -> IntArray:
        sides = arrays(lengths)
        return epoch_order(*sides, global_batch_size=global_batch_size, seed=seed, epoch=epoch)

    first = order()
    np.random.seed(1)
    np.random.permutation(5)
    assert np.array_equal(order(), first)


def test_steps_can_be_asked_for_in_any_order() -> None:
    lengths = like_sharegpt(100)
    one, other = (BatchSampler(*lengths, global_batch_size=7, seed=3) for _ in range(2))
    rows = [one.rows_of(step).tolist() for step in range(40)]
    assert [other.rows_of(step).tolist() for step in range(39, -1, -1)] == rows[::-1]


@pytest.mark.parametrize("group", [True, False])
def test_epochs_and_seeds_differ(group: bool) -> None:
    lengths = like_sharegpt(50)
    orders = {
        tuple(
            epoch_order(
                *lengths, global_batch_size=4, seed=seed, epoch=epoch, group_by_length=group
            )
        )
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_without_grouping_lengths_do_not_matter() -> None:
    one, other = like_sharegpt(50, 0), like_sharegpt(50, 1)
    orders = [
        epoch_order(*lengths, global_batch_size=4, seed=0, epoch=0, group_by_length=False).tolist()
        for lengths in (one, other)
    ]
    assert orders[0] == orders[1] != list(range(50))


def test_rows_meet_others_in_each_epoch() -> None:
    lengths = like_sharegpt(4_000)
    met = []
    for epoch in range(2):
        order = epoch_order(*lengths, global_batch_size=8, seed=0, epoch=epoch)
        steps = order.reshape(-1, 8)
        met.append({(a, b) for step in steps.tolist() for a in step for b in step if a < b})
    assert len(met[0] & met[1]) < 0.2 * len(met[0])


@given(global_batch_size=st.integers(1, 3000))
def test_the_groups_of_a_step_are_about_eight_rows(global_batch_size: int) -> None:
    sizes = group_sizes(global_batch_size)
    assert sum(sizes) == global_batch_size
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 11
    assert min(sizes) >= min(global_batch_size, 6)


@given(steps=st.integers(0, 5000), global_batch_size=st.integers(1, 20_000))
def test_windows_share_the_steps_evenly(steps: int, global_batch_size: int) -> None:
    windows = windows_of(steps, global_batch_size)
    assert sum(count * size for count, size in windows) == steps
    sizes = [size for _, size in windows]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    # Twice as many, where the steps left over would not make a window of their own.
    assert max(sizes, default=0) <= 2 * max(8192 / global_batch_size + 1, 4)


def test_small_steps_are_of_like_length_and_large_ones_are_as_long_as_any() -> None:
    """A large step has rows of all lengths: its tokens differ less than chance would have it."""
    encoder, decoder = like_sharegpt(20_480)

    def spread(global_batch_size: int, group: bool) -> tuple[float, float]:
        order = epoch_order(
            encoder,
            decoder,
            global_batch_size=global_batch_size,
            seed=0,
            epoch=0,
            group_by_length=group,
        )
        steps = order.reshape(-1, global_batch_size)
        within = float(np.std(decoder[steps], axis=1).mean())
        return within, float(np.std(decoder[steps].sum(axis=1)))

    assert spread(8, True)[0] < 0.2 * spread(8, False)[0]
    assert spread(128, True)[0] > 0.9 * spread(128, False)[0]
    assert spread(128, True)[1] < 0.8 * spread(128, False)[1]


def test_groups_are_of_like_length_on_both_sides() -> None:
    encoder = np.array([[10, 90, 11, 91, 12, 92, 13, 93]])
    decoder = np.array([[50, 50, 5, 5, 51, 51, 6, 6]])
    groups = group_alike(encoder, decoder, [2] * 4).reshape(-1, 2).tolist()
    assert groups == [[2, 6], [0, 4], [3, 7], [1, 5]]


@given(
    windows=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    seed=seeds,
)
def test_grouping_keeps_each_row_of_a_window(windows: int, sizes: list[int], seed: int) -> None:
    # Few lengths, so that many are equal; some beyond 16 bits.
    lengths = np.random.default_rng(seed).integers(1, 5, (2, windows, sum(sizes))) * 40_000
    places = group_alike(lengths[0], lengths[1], sizes)
    for window in range(windows):
        alone = group_alike(lengths[0][[window]], lengths[1][[window]], sizes)
        assert np.array_equal(alone[0], places[window])
        assert sorted(alone[0].tolist()) == list(range(sum(sizes)))


def test_padding_is_what_the_docs_say() -> None:
    encoder, decoder = like_sharegpt(24_576)
    order = epoch_order(encoder, decoder, global_batch_size=8, seed=0, epoch=0)
    ideal = (encoder + decoder).sum()

    def padded(order: IntArray) -> float:
        steps = order.reshape(-1, 8)
        return float(8 * (encoder[steps].max(axis=1) + decoder[steps].max(axis=1)).sum() / ideal)

    assert padded(order) < 1.05
    assert padded(np.arange(24_576)) > 1.7


def test_a_million_rows_are_ordered_in_little_time() -> None:
    """Under a second on an idle core; the tests allow for a busy one."""
    lengths = like_sharegpt(1_000_000)
    start = time.process_time()
    epoch_order(*lengths, global_batch_size=8, seed=0, epoch=0)
    assert time.process_time() - start < 3.0
    assert batching.WINDOW_ROWS >= 4096
