"""What may not be read is said to be that, and not to be missing."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import ExportConfig, FitConfig
from pipeline.errors import CheckpointError, ModelError
from pipeline.export import export
from pipeline.fit.checkpoint.format import find_checkpoint
from pipeline.fit.stage import fit
from pipeline.generation.config import GenerationOptions
from pipeline.generation.model import open_model


@contextlib.contextmanager
def denied(path: Path) -> Iterator[None]:
    """Take a path's permissions away; the superuser, who needs none, is another user meanwhile."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)


@pytest.fixture(scope="module")
def output(tiny: Path, prepared: Path) -> Iterator[Path]:
    """An output folder with a checkpoint, where every user may look."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        config = FitConfig(
            data_path=str(prepared),
            model_name_or_path=str(tiny),
            output_dir=f"{folder}/out",
            max_steps=1,
        )
        out = fit(config)
        open_model(out, GenerationOptions())  # imports what another user may not
        yield out


@pytest.mark.parametrize("name", ["", "config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_that_may_not_be_read(output: Path, name: str) -> None:
    with denied(output / name), pytest.raises(ModelError) as caught:
        open_model(output, GenerationOptions())
    assert caught.value.got == "permission denied"
    assert str(output / name) in caught.value.where
    assert "chmod" in caught.value.do


def test_an_export_of_what_may_not_be_read(output: Path, tmp_path: Path) -> None:
    with denied(output), pytest.raises(ModelError) as caught:
        export(ExportConfig(model=str(output), output_dir=str(tmp_path / "export")))
    assert caught.value.got == "permission denied"


@pytest.mark.parametrize("name", ["", "checkpoint.json", "optimizer.pt"])
def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(output: Path, name: str) -> None:
    with denied(output / "checkpoint-1" / name), pytest.raises(CheckpointError) as caught:
        find_checkpoint(output)
    assert caught.value.got == "permission denied"
    assert str(output / "checkpoint-1" / name) in caught.value.where
