"""``duet verify`` of what a run leaves: the trained folder, and its checkpoints."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.errors import InputError
from pipeline.fit.stage import fit
from tests.commands.test_verify import check, files_of, flip_each
from tests.conftest import undocumented
from tests.fit.helpers import changed


@pytest.fixture
def out(config: FitConfig) -> Path:
    return fit(changed(config, max_steps=1, save_strategy="steps", save_steps=1))


def test_a_flipped_byte_of_a_trained_folder_and_its_checkpoint_is_noticed(out: Path) -> None:
    checkpoint = out / "checkpoint-1"
    assert not undocumented(files_of(out))
    of_model = json.loads((out / "checksums.json").read_text("utf-8"))["files"]
    others = {n for n in files_of(out) if not n.startswith("checkpoint-1/")} - of_model.keys()
    assert others == {"README.md", "checksums.json", "log.jsonl"}, "these change, or are edited"
    assert {"model.safetensors", "tokenizer.json", "trainer_state.json"} <= of_model.keys()
    assert [line.split(":")[0] for line in check(out)] == [str(out), str(checkpoint)]
    flip_each(checkpoint, files_of(checkpoint), regions=7)
    flip_each(checkpoint, ["checkpoint.json"], regions=300)
    shutil.rmtree(checkpoint)
    flip_each(out, sorted(of_model), regions=7)
    flip_each(out, ["checksums.json"], regions=(out / "checksums.json").stat().st_size)


def test_folders_of_older_versions_are_checked_as_far_as_they_can_be(out: Path) -> None:
    (out / "checksums.json").unlink()
    record = out / "checkpoint-1" / "checkpoint.json"
    fields = json.loads(record.read_text("utf-8"))
    del fields["checksum"]
    record.write_text(json.dumps(fields), "utf-8")
    first, second = check(out)
    assert first == (
        f"{out}: the trained model is an older version's, without checksums.json: not checked"
    )
    assert second.startswith(f"{out / 'checkpoint-1'}: {len(fields['files'])} files, ")
    shutil.rmtree(out / "checkpoint-1")
    with pytest.raises(InputError, match=r"without checksums\.json, as older versions wrote it"):
        check(out)
