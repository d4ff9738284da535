"""What a run leaves on disk: hashed while written, readable as the umask says, read once."""

import hashlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM

from pipeline.cli import run as cli
from pipeline.config import FitConfig
from pipeline.errors import CheckpointError
from pipeline.fit.checkpoint.format import delete_oldest, find_checkpoint
from pipeline.fit.checkpoint.hashed_file import HashedFile, write_safetensors
from pipeline.fit.checkpoint.pretrained import deal_files, weight_files
from pipeline.fit.stage import fit
from pipeline.store.seals import FileSeal
from scripts.ranks import Ranks, run_in
from tests.fit.helpers import assert_same_weights, changed, log_of, weights_of


def test_safetensors_are_the_librarys_own_bytes_and_hashed(tmp_path: Path) -> None:
    tensors = {
        "wo": torch.randn(3, 5),
        "half": torch.randn(7).bfloat16(),
        "count": torch.tensor(3),
        "ids": torch.arange(6, dtype=torch.int32).view(2, 3).t(),
        "öde": torch.ones(1, dtype=torch.uint8),
        "none": torch.empty(0, 4),
    }
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, tmp_path / "theirs", {"format": "pt"}
    )
    with HashedFile(tmp_path / "ours") as file:
        write_safetensors(tensors, file)
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert file.seal() == FileSeal(len(content), hashlib.sha256(content).hexdigest())


def test_a_file_is_not_read_again_for_its_hash(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest_of = hashlib.file_digest

    def noted(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest_of(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    out = fit(changed(config, save_strategy="steps", max_steps=1))
    monkeypatch.undo()
    assert "config.json" in read
    assert not {"model.safetensors", "optimizer.pt", "scheduler.pt"}.intersection(read)
    assert find_checkpoint(out) is not None, "all hashes are right"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("lora_r", [0, 2])
def test_every_file_has_the_permissions_that_the_umask_leaves(
    config: FitConfig, lora_r: int
) -> None:
    out = fit(changed(config, save_strategy="steps", max_steps=1, lora_r=lora_r))
    modes = {
        str(path.relative_to(out)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in out.rglob("*")
        if path.is_file()
    }
    assert len(modes) > 10
    assert set(modes.values()) == {"0o644"}, modes


def test_each_process_has_a_part_of_about_the_same_size() -> None:
    sizes = {"shared": 100, "head": 100} | {f"q{i}": 10 for i in range(20)}
    files = weight_files(sizes, writers=4)
    assert list(files) == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert sorted(name for names in files.values() for name in names) == sorted(sizes)
    assert {sum(sizes[name] for name in names) for names in files.values()} == {100}
    assert weight_files(sizes) == {"model.safetensors": list(sizes)}
    moments = {0: 10, 1: 10, 2: 10}
    assert deal_files("optimizer.pt", moments, 1) == {"optimizer.pt": [0, 1, 2]}
    assert [*deal_files("optimizer.pt", moments, 4).values()] == [[0], [1], [2]]


def test_checkpoints_without_the_optimizer_are_not_resumed(
    config: FitConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = changed(config, save_strategy="steps", save_steps=3, save_only_model=True)
    out = fit(config)
    names = {path.name for path in (out / "checkpoint-3").iterdir()}
    assert {"model.safetensors", "config.json", "trainer_state.json", "checkpoint.json"} <= names
    assert not [name for name in names if name.startswith(("optimizer", "scheduler", "rng"))]
    AutoModelForSeq2SeqLM.from_pretrained(out / "checkpoint-3")
    capsys.readouterr()
    fit(config)
    assert "nothing to train" in capsys.readouterr().err
    shutil.rmtree(out / "checkpoint-6")
    with pytest.raises(CheckpointError, match="without the optimizer") as caught:
        fit(config)
    assert caught.value.where.endswith("checkpoint-3")
    assert "--save-only-model" in caught.value.got


def test_a_checkpoint_of_schema_2_is_resumed_to_the_bit(config: FitConfig, tmp_path: Path) -> None:
    """The one before several processes wrote: the same files, and no evaluation to come."""
    config = changed(config, save_strategy="steps", save_steps=3, eval_strategy=None)
    whole = fit(config)
    parts = shutil.copytree(whole, tmp_path / "parts")
    shutil.rmtree(parts / "checkpoint-6")
    (parts / "trainer_state.json").unlink()
    path = parts / "checkpoint-3" / "checkpoint.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["schema_version"] = 2
    del manifest["progress"]["evaluation_is_due"], manifest["checksum"]
    path.write_text(json.dumps(manifest), "utf-8")
    fit(changed(config, output_dir=str(parts)))
    assert log_of(parts) == log_of(whole)
    assert_same_weights(parts, whole)


def test_protected_checkpoints_stay(tmp_path: Path) -> None:
    for step in range(1, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "checkpoint.json").write_text("{}", "utf-8")
    delete_oldest(tmp_path, 5, 3, protected={1})
    assert sorted(path.name[11:] for path in tmp_path.iterdir()) == ["1", "4", "5"]
    delete_oldest(tmp_path, 5, 1, protected={1})
    assert sorted(path.name[11:] for path in tmp_path.iterdir()) == ["1", "5"]


def fit_counting_reads(config: FitConfig, folder: Path) -> None:
    """Run ``fit``, and note the optimizer's files that ``torch.load`` opens, by process."""
    load, opened = torch.load, []

    def noted(file: object, **kwargs: object) -> object:
        if isinstance(file, Path):  # not the bytes of an object that a process was sent
            opened.append([file.name, kwargs.get("mmap")])
        return load(file, **kwargs)

    torch.load = noted
    fit(config)
    (folder / f"opened-{os.environ['RANK']}.json").write_text(json.dumps(opened), "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", ["", "full_shard"])
def test_on_two_processes_each_writes_a_part_and_none_reads_what_it_does_not_keep(
    config: FitConfig, still: Path, tmp_path: Path, fsdp: str
) -> None:
    config = changed(
        config,
        model_name_or_path=str(still),
        train_batch_size=4,
        save_strategy="steps",
        save_steps=3,
        learning_rate=1e-3,
        fsdp=fsdp,
    )
    one = fit(changed(config, fsdp="", output_dir=str(tmp_path / "one")))
    two = Path(config.output_dir)
    run_in(2, fit, config, folder=tmp_path / "said")
    names = {path.name for path in (two / "checkpoint-3").iterdir()}
    for part in ("model-0000{}-of-00002.safetensors", "optimizer-0000{}-of-00002.pt"):
        assert {part.format(1), part.format(2)} <= names
    assert "optimizer.pt" not in names
    sizes = [
        (two / "checkpoint-3" / f"optimizer-0000{i}-of-00002.pt").stat().st_size for i in (1, 2)
    ]
    assert max(sizes) < 1.2 * min(sizes)
    export = tmp_path / "export"
    assert cli(["export", str(two / "checkpoint-6"), f"--output-dir={export}"]) == 0
    assert_same_weights(export, two)
    log = log_of(two)
    for out in (two, shutil.copytree(two, tmp_path / "resumed-on-one")):
        shutil.rmtree(out / "checkpoint-6")
        (out / "trainer_state.json").unlink()
    run_in(2, fit_counting_reads, config, tmp_path, folder=tmp_path / "said")
    opened = [json.loads((tmp_path / f"opened-{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    optimizer = [
        [mapped for name, mapped in each if name.startswith("optimizer")] for each in opened
    ]
    # Sharded, each takes its shards from mapped files; else the second has them sent.
    assert optimizer == [[True, True], [True, True] if fsdp else []]
    assert log_of(two) == log
    resumed = fit(changed(config, fsdp="", output_dir=str(tmp_path / "resumed-on-one")))
    for out in (two, resumed):
        for first, second in zip(log_of(one), log_of(out), strict=True):
            assert second == pytest.approx(first, rel=1e-4)
        for name, tensor in weights_of(one).items():
            assert (weights_of(out)[name] - tensor).abs().max() < 1e-4, name


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_nothing_that_looks_complete(
    config: FitConfig, tmp_path: Path
) -> None:
    config = changed(config, train_batch_size=4, save_strategy="steps", save_steps=3)
    ranks = Ranks(2, fit_and_die_writing, config, folder=tmp_path / "said")
    codes = ranks.end(timeout=120)
    assert codes[1] == -9
    assert codes[0] == 1
    out = Path(config.output_dir)
    assert not list(out.glob("checkpoint-*"))
    assert list(out.glob(".checkpoint-3.*.tmp"))
    run_in(2, fit, config, folder=tmp_path / "said")
    assert not list(out.glob(".*"))


def fit_and_die_writing(config: FitConfig) -> None:
    """Run ``fit``; the second process dies when its part is half written."""
    write = HashedFile.write

    def die(file: HashedFile, data: object) -> int:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, data)

    HashedFile.write = die  # type: ignore[method-assign]
    fit(config)


@pytest.mark.slow
def test_a_process_lost_while_resuming_is_no_damaged_checkpoint(
    config: FitConfig, tmp_path: Path
) -> None:
    config = changed(config, train_batch_size=4, save_strategy="steps", save_steps=3)
    run_in(2, fit, config, folder=tmp_path / "said")
    shutil.rmtree(Path(config.output_dir) / "checkpoint-6")
    ranks = Ranks(2, fit_and_die_reading, config, folder=tmp_path / "said")
    assert ranks.end(timeout=120) == [-9, 1]
    assert "another process of the run has ended" in ranks.said(1)
    assert "damaged" not in ranks.said(1)


def fit_and_die_reading(config: FitConfig) -> None:
    """Run ``fit``; the first process dies as it reads the optimizer's state."""
    load = torch.load

    def die(file: object, **kwargs: object) -> object:
        if isinstance(file, Path) and file.name.startswith("optimizer"):
            os.kill(os.getpid(), signal.SIGKILL)
        return load(file, **kwargs)

    torch.load = die
    fit(config)
