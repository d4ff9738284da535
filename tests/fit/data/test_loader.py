"""A process gets its share of each step as padded batches; on a GPU they are made ahead."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.fit.data import loader as feeding
from pipeline.fit.data.collate import IGNORED, Batch, DataCollatorForSupervisedDataset
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import StepLoader, made_ahead, micro_batcher_for, to_device
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.flops import FLAN_T5_BASE
from tests.fit.training.test_step import OneOfMany

PAD = 7


class Elsewhere(OneOfMany):
    """A device that is no CPU, on which nothing is put."""

    device = torch.device("meta")


def feeder(prepared: Path, accelerator: Any = None, max_rows: int = 2) -> StepLoader:
    dataset, accelerator = SupervisedDataset(prepared), accelerator or OneOfMany()
    return StepLoader(
        dataset,
        micro_batcher_for(dataset, FLAN_T5_BASE, max_rows, accelerator.device),
        PAD,
        accelerator,
    )


def rows_in(batches: list[dict[str, torch.Tensor]]) -> list[tuple[list[int], list[int]]]:
    """Return the rows of some batches without padding, those without labels left out."""
    rows = []
    for batch in batches:
        sides = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
        for ids, mask, labels in zip(*sides, strict=True):
            if (labels != IGNORED).any():
                rows.append((ids[mask == 1].tolist(), labels[labels != IGNORED].tolist()))
    return rows


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_batch_is_the_collators(prepared: Path, multiple: int) -> None:
    dataset = SupervisedDataset(prepared)
    collate = DataCollatorForSupervisedDataset(SimpleNamespace(pad_token_id=PAD))
    for rows in ([3], [5, 0, 19], list(range(20))):
        wanted = collate([dataset[row] for row in rows])
        found = dataset.batch(np.array(rows), PAD, multiple=multiple)
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            width = wanted[name].shape[1]
            assert tensor.dtype == torch.int64
            assert torch.equal(tensor[:, :width], wanted[name])
            assert tensor.shape[1] == -(-width // multiple) * multiple
            rest = {"input_ids": PAD, "attention_mask": 0, "labels": IGNORED}[name]
            assert (tensor[:, width:] == rest).all()


@pytest.mark.parametrize("processes", [1, 3, 30])
def test_the_processes_share_the_rows_of_a_step(prepared: Path, processes: int) -> None:
    rows = np.array([3, 1, 8, 0, 12, 5, 19, 7])
    feeds = [feeder(prepared, OneOfMany(i, processes)).feed(rows) for i in range(processes)]
    assert len({len(feed.batches) for feed in feeds}) == 1
    dataset = SupervisedDataset(prepared)
    wanted = [(dataset[i]["input_ids"].tolist(), dataset[i]["labels"].tolist()) for i in rows]
    assert sorted(row for feed in feeds for row in rows_in(feed.batches)) == sorted(wanted)
    encoder, decoder = dataset.lengths
    for feed in feeds:
        assert (feed.encoder_tokens, feed.target_tokens) == (
            int(encoder[rows].sum()),
            int(decoder[rows].sum()),
        )
        assert 0 < feed.useful_flops <= feed.padded_flops == feeds[0].padded_flops


def test_an_empty_place_is_one_token_without_a_label(prepared: Path) -> None:
    (batch,) = feeder(prepared, OneOfMany(0, 2)).feed(np.array([4])).batches
    (other,) = feeder(prepared, OneOfMany(1, 2)).feed(np.array([4])).batches
    spare = min(batch, other, key=lambda batch: batch["labels"].numel())
    assert spare.pop("targets").tolist() == []
    assert {tensor.shape for tensor in spare.values()} == {(1, 1)}
    assert spare["labels"].tolist() == [[IGNORED]]
    assert spare["attention_mask"].tolist() == [[1]]


@pytest.mark.parametrize("accelerator", [OneOfMany(), Elsewhere()])
def test_the_steps_come_in_order_made_ahead_or_not(prepared: Path, accelerator: OneOfMany) -> None:
    made = feeder(prepared, accelerator)
    plan = BatchSampler(*SupervisedDataset(prepared).lengths, global_batch_size=3, seed=0)
    wanted = [plan.rows_of(step).tolist() for step in range(9)]
    before = threading.active_count()
    with made.ahead(map(plan.rows_of, range(9))) as feeds:
        assert [feed.rows.tolist() for feed in feeds] == wanted
    assert threading.active_count() == before
    assert made.waited > 0


def test_they_are_made_by_one_thread_a_few_at_a_time() -> None:
    threads: list[threading.Thread] = []
    asked = 0

    def items() -> Iterator[int]:
        nonlocal asked
        for i in range(20):
            asked = i + 1
            threads.append(threading.current_thread())
            yield i

    entered: list[threading.Thread] = []
    made = made_ahead(items(), 3, lambda: entered.append(threading.current_thread()))
    assert next(made) == 0
    deadline = time.monotonic() + 10
    while asked < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert asked == 4  # the one that was taken, and three that wait
    assert list(made) == list(range(1, 20))
    assert {*threads} == {*entered} != {threading.current_thread()}


def test_an_error_crosses_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    before = threading.active_count()
    made = made_ahead(items(), 3, lambda: None)
    assert [next(made), next(made)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(made)
    assert threading.active_count() == before


def test_the_thread_ends_with_a_loop_that_fails(prepared: Path) -> None:
    made, before = feeder(prepared, Elsewhere()), threading.active_count()
    with pytest.raises(KeyError), made.ahead(np.array([i]) for i in range(20)) as feeds:
        next(feeds)
        assert threading.active_count() == before + 1
        raise KeyError
    assert threading.active_count() == before


def test_waiting_is_counted(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Slow(SupervisedDataset):
        def batch(self, *args: Any, **kwargs: Any) -> Batch:
            nonlocal now
            now += 2
            return super().batch(*args, **kwargs)

    monkeypatch.setattr(feeding, "time", SimpleNamespace(perf_counter=lambda: now))
    made = dataclasses.replace(feeder(prepared), dataset=Slow(prepared))
    with made.ahead(np.array([i]) for i in range(3)) as feeds:
        for _ in feeds:
            now += 5
    assert made.waited == 3 * 2


def test_batches_move_to_the_device(prepared: Path) -> None:
    (batch,) = feeder(prepared).feed(np.array([0])).batches
    assert {tensor.device.type for tensor in to_device(batch, torch.device("meta")).values()} == {
        "meta"
    }


@pytest.mark.gpu
def test_on_a_gpu_batches_wait_in_pinned_memory(prepared: Path) -> None:
    accelerator = OneOfMany()
    accelerator.device = torch.device("cuda", 0)
    with feeder(prepared, accelerator).ahead(np.array([i]) for i in range(3)) as feeds:
        for feed in feeds:
            for batch in feed.batches:
                assert all(tensor.is_pinned() for tensor in batch.values())
                assert batch["labels"].shape[1] % feeding.GPU_MULTIPLE == 0
                copies = to_device(batch, accelerator.device)
                assert torch.equal(copies["labels"].cpu(), batch["labels"])
