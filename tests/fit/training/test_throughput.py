"""What a run says of its speed adds up, and reading it changes nothing."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import FitConfig
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import micro_batcher_for
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.flops import training_passes
from pipeline.fit.model.loading import build_model
from pipeline.fit.stage import fit
from pipeline.fit.training.throughput import METRICS, ThroughputMeter, matmul_peak, peak_memory
from pipeline.tokenizer import TextTokenizer
from tests.fit.helpers import changed, state_of

CPU = torch.device("cpu")


class Clock:
    """It goes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_share_of_peak_of_an_adapter_counts_no_gradients_of_weights_that_stay(
    clock: Clock,
) -> None:
    meter = meter_of(clock, processes=1, passes=training_passes(adapted=True))
    clock.now += 2
    meter.step(target_tokens=1, useful_flops=500.0, padded_flops=500.0, waited=0.0)
    assert meter.read(1)["mfu"] == pytest.approx(2 * 500 / 2 / 1000)


def meter_of(
    clock: Clock,
    total_steps: int = 10,
    first_step: int = 0,
    processes: int = 2,
    passes: int = 3,
    data_sheet: float | None = None,
) -> ThroughputMeter:
    return ThroughputMeter(
        device=CPU,
        processes=processes,
        total_steps=total_steps,
        first_step=first_step,
        passes=passes,
        peak=1000.0,
        data_sheet=data_sheet,
        clock=clock,
    )


def test_each_value_by_hand(clock: Clock) -> None:
    meter = meter_of(clock)
    clock.now += 50  # what happens before the first step
    meter.resume()
    clock.now += 3
    meter.step(target_tokens=60, useful_flops=500.0, padded_flops=600.0, waited=0.25)
    clock.now += 40  # an evaluation
    meter.resume()
    clock.now += 1
    meter.step(target_tokens=20, useful_flops=300.0, padded_flops=400.0, waited=0.75)
    values = meter.read(2)
    assert tuple(values) == METRICS
    assert values["target_tokens_per_second"] == 80 / 4
    assert values["mfu"] == pytest.approx(3 * 800 / 4 / (2 * 1000))
    assert values["padding_share"] == pytest.approx(0.2)
    assert values["data_wait_share"] == pytest.approx(0.75 / 4)
    assert values["seconds_left"] == pytest.approx(94 / 2 * 8)
    assert 0.01 < values["peak_memory_gib"] < 1000


def test_an_entry_is_of_the_steps_since_the_last_one(clock: Clock) -> None:
    meter = meter_of(clock, total_steps=7, first_step=4)
    for step in (5, 6, 7):
        clock.now += step
        meter.step(target_tokens=step * 10, useful_flops=1.0, padded_flops=1.0, waited=float(step))
        values = meter.read(step)
        assert values["target_tokens_per_second"] == 10
        assert values["padding_share"] == 0
        assert values["data_wait_share"] == pytest.approx(1 / step if step > 5 else 1)
        assert values["seconds_left"] == pytest.approx(
            sum(range(5, step + 1)) / (step - 4) * (7 - step)
        )


def test_the_peak_is_measured_once_and_leaves_the_generators_alone() -> None:
    matmul_peak.cache_clear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    peak = matmul_peak(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e8 < peak < 1e15
    assert matmul_peak(CPU, torch.float32) == peak
    left = torch.randn(512, 512)
    for _ in range(10):  # others may have had the cores
        matmul_peak.cache_clear()
        peak = matmul_peak(CPU, torch.float32)
        start = time.perf_counter()
        left @ left
        if 2 * 512**3 / (time.perf_counter() - start) < 3 * peak:
            return
    raise AssertionError("a product is faster than the peak")


def test_memory_is_that_of_the_process() -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the system does not tell another way")
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    assert peak_memory(CPU) == pytest.approx(int(peak.split()[1]) * 1024, rel=0.02)


def test_the_log_has_them_and_padding_is_that_of_the_plan(
    config: FitConfig, tokenizer: TextTokenizer
) -> None:
    out = fit(changed(config, per_device_train_batch_size=2, train_batch_size=6))
    entries = [entry for entry in state_of(out)["log_history"] if "loss" in entry]
    dataset = SupervisedDataset(config.data_path[0])
    lengths = dataset.lengths
    micro_batcher = micro_batcher_for(dataset, build_model(config.model, tokenizer).config, 2, CPU)
    steps = BatchSampler(*lengths, global_batch_size=6, seed=42)
    for i, entry in enumerate(entries):
        rows = steps.rows_of(i)
        useful = micro_batcher.useful(rows)
        padded = sum(micro_batcher.cost(part) for part in micro_batcher.split(rows))
        assert entry["padding_share"] == pytest.approx(1 - useful / padded)
        assert 0 < entry["mfu"] < 1
        assert 0 < entry["data_wait_share"] < 1
        assert entry["target_tokens_per_second"] > 0
    left = [entry["seconds_left"] for entry in entries]
    assert left[-1] == 0
    assert all(seconds > 0 for seconds in left[:-1])


def test_trackers_and_the_progress_line_have_them(
    config: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = fit(changed(config, report_to="tensorboard"))
    events: Any = EventAccumulator(str(out / "duet"))
    events.Reload()
    entries = [entry for entry in state_of(out)["log_history"] if "loss" in entry]
    for name in METRICS:
        shown = [event.value for event in events.Scalars(f"train/{name}")]
        assert shown == pytest.approx([entry[name] for entry in entries], rel=1e-5)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step 3/6:")]
    speed = entries[2]["target_tokens_per_second"]
    assert f", target_tokens_per_second {speed:,.0f}, mfu " in lines[0]
    keys = [part.split()[0] for part in lines[0].removeprefix("step 3/6: ").split(", ")]
    assert keys == [key for key in entries[2] if key != "step"], "those of log_history"


def test_where_the_maker_s_figure_is_known_the_share_of_it_is_there_too(clock: Clock) -> None:
    meter = meter_of(clock, data_sheet=989e12)
    clock.now += 2
    meter.step(target_tokens=1, useful_flops=989e12, padded_flops=989e12, waited=0.0)
    assert meter.read(1)["mfu_datasheet"] == pytest.approx(3 / 2 / 2)
