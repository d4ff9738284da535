"""What the lengths of a prepared folder tell, against literals and against preparing anew."""

import numpy as np
import pytest

from pipeline.config import PrepareConfig
from pipeline.fit.data.micro_batches import MicroBatcher
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.estimate.step_costs import cost_of_steps
from pipeline.fit.flops import FLAN_T5_BASE, ModelFlops
from pipeline.prepare.stage import prepare
from pipeline.report.dataset.histogram import bin_edges, counts_of
from pipeline.report.dataset.padding import plan_costs, stock_ratio
from pipeline.report.dataset.rows import Lengths, read_lengths
from pipeline.report.dataset.windows import Cuts, Range, window_effects
from pipeline.store.manifest import Manifest, read_manifest
from tests.conftest import ROOT, SAMPLE

GOLDEN = ROOT / "tests" / "golden"
UNCUT = 8192
"""A window that holds every conversation of the sample."""
FLOPS = ModelFlops.of(FLAN_T5_BASE)


def lengths_of(encoder: list[int], decoder: list[int], cut: list[bool] | None = None) -> Lengths:
    known = np.array(cut or [False] * len(encoder))
    return Lengths(np.array(encoder), np.array(decoder), known)


def total(encoder: int, decoder: int) -> int:
    return encoder + decoder


def test_lengths_are_those_of_the_rows() -> None:
    folder = GOLDEN / "prepared"
    datasets = pytest.importorskip("datasets")
    splits = datasets.load_from_disk(str(folder))
    found = read_lengths(folder, read_manifest(folder), ["train", "eval"])
    rows = [row for split in ("train", "eval") for row in splits[split]]
    assert found.encoder.tolist() == [len(row["input_ids"]) for row in rows]
    assert found.decoder.tolist() == [len(row["labels"]) for row in rows]


def test_a_window_by_hand() -> None:
    lengths = lengths_of([100, 60, 90, 30], [10, 50, 20, 100], [False, False, True, False])
    cuts = Cuts(window=100, target=100, inputs=Range(2, 2), answers=1)
    small, own, large = window_effects(lengths, cuts, total, [40, 200])
    assert [effect.window for effect in (small, own, large)] == [40, 100, 200]
    # Three are longer than 40, the known one among them; one more was cut, it may be the fourth.
    assert small.inputs_cut == Range(3, 4)
    assert small.answers_cut == Range(2, 2)
    assert small.answer_tokens_lost == 10 + 60
    assert small.encoder_tokens == Range(0, 40 + 40 + 40 + 30)
    assert small.cost.high == (50 + 80 + 60 + 70) / 460
    assert own.inputs_cut == Range(2, 2) and own.answers_cut == Range(1, 1)
    assert own.encoder_tokens == Range(280, 280) and own.cost == Range(1, 1)
    # Two rows may grow, the shortest most: by 170 and 140. The answer, by 100.
    assert large.inputs_cut == Range(0, 2) and large.answers_cut == Range(0, 1)
    assert large.encoder_tokens == Range(280, 280 + 170 + 140)
    assert large.cost == Range(1, 1 + (170 + 140 + 100) / 460)


def test_a_target_of_its_own_stays_what_it_is() -> None:
    lengths = lengths_of([100, 60], [20, 20])
    cuts = Cuts(window=100, target=20, inputs=Range(0, 0), answers=2)
    small, _, large = window_effects(lengths, cuts, total, [50, 200])
    assert small.answers_cut == large.answers_cut == Range(2, 2)
    assert large.cost == Range(1, 1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Manifest, Lengths]]:
    """The sample that ships, prepared for several windows."""
    found = {}
    for window in (96, 160, 256, UNCUT):
        folder = prepare(
            PrepareConfig(
                data_path=(str(SAMPLE),),
                model_name_or_path=str(GOLDEN / "model"),
                output_dir=str(tmp_path_factory.mktemp("windows")),
                model_max_length=window,
                num_workers=1,
            )
        )
        manifest = read_manifest(folder)
        found[window] = manifest, read_lengths(folder, manifest, manifest.splits())
    return found


@pytest.mark.parametrize("own", [160, 256])
def test_the_bounds_hold_what_preparing_anew_gives(
    prepared: dict[int, tuple[Manifest, Lengths]], own: int
) -> None:
    manifest, lengths = prepared[own]
    assert lengths.surely_cut.any()
    effects = window_effects(lengths, Cuts.of(manifest, lengths), FLOPS, prepared)
    for effect in effects:
        truth, rows = prepared[effect.window]
        cuts = Cuts.of(truth, rows)
        assert effect.inputs_cut.low <= cuts.inputs.high
        assert cuts.inputs.low <= effect.inputs_cut.high
        assert effect.answers_cut.low <= cuts.answers <= effect.answers_cut.high
        assert effect.encoder_tokens.low <= int(rows.encoder.sum()) <= effect.encoder_tokens.high
        cost = FLOPS(rows.encoder, rows.decoder).sum()
        cost /= FLOPS(lengths.encoder, lengths.decoder).sum()
        assert effect.cost.low <= cost * (1 + 1e-9) and cost <= effect.cost.high * (1 + 1e-9)


def test_rows_that_were_surely_cut_are_longer_uncut(
    prepared: dict[int, tuple[Manifest, Lengths]],
) -> None:
    uncut = prepared[UNCUT]
    assert Cuts.of(*uncut).inputs == Range(0, 0)
    for window in (96, 160, 256):
        manifest, found = prepared[window]
        was_cut = found.encoder < uncut[1].encoder
        bounds = Cuts.of(manifest, found).inputs
        assert bounds.low <= was_cut.sum() <= bounds.high
        assert found.surely_cut.any() and not (found.surely_cut & ~was_cut).any()


def test_bins_hold_each_row_once() -> None:
    random = np.random.default_rng(0)
    lengths = lengths_of(*(random.integers(2, 300, 500).tolist() for _ in range(2)))
    edges = bin_edges(lengths.encoder), bin_edges(lengths.decoder)
    counts = counts_of(lengths, edges)
    for i in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            here = (edges[0][i] < lengths.encoder) & (lengths.encoder <= edges[0][i + 1])
            here &= (edges[1][j] < lengths.decoder) & (lengths.decoder <= edges[1][j + 1])
            assert counts[i, j] == here.sum()
    assert counts.sum() == 500


def test_bins_of_rows_that_are_all_alike_and_tiny() -> None:
    lengths = lengths_of([1, 2, 1], [64, 64, 64])
    edges = bin_edges(lengths.encoder), bin_edges(lengths.decoder)
    assert counts_of(lengths, edges).sum() == 3


def test_padding_is_what_the_steps_cost() -> None:
    random = np.random.default_rng(1)
    lengths = lengths_of(*(random.integers(2, 500, 203).tolist() for _ in range(2)))
    costs = {cost.plan: cost for cost in plan_costs(lengths, FLOPS)}
    batcher = MicroBatcher(lengths.encoder, lengths.decoder, flops=FLOPS, max_rows=8)
    sampler = BatchSampler(
        lengths.encoder, lengths.decoder, global_batch_size=8, seed=42, group_by_length=True
    )
    steps = [sampler.rows_of(step) for step in range(sampler.steps_per_epoch)]
    expected = cost_of_steps(steps, batcher, 1)
    found = costs["fit, global batch 8, grouped"]
    assert found.ratio == pytest.approx(expected.padded / expected.useful)
    assert found.share == pytest.approx(1 - expected.useful / expected.padded)
    assert found.ratio < costs["fit, global batch 8, shuffled"].ratio
    assert costs["stock, shuffled"].ratio > 1.3


def test_a_stock_batch_is_padded_to_its_longest_on_both_sides() -> None:
    lengths = lengths_of([9, 1, 5], [2, 4, 3])
    assert stock_ratio(lengths, np.array([0, 1, 2]), 2, total) == (2 * 13 + 8) / (11 + 5 + 8)
