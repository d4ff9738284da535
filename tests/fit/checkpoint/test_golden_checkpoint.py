"""A checkpoint that an earlier version wrote (commit 9b1d818) is resumed, with that run's losses.

    python -m pipeline fit --data-path tests/golden/prepared
        --model-name-or-path tests/golden/model --output-dir out --from-scratch --max-steps 6
        --gradient-accumulation-steps 2 --per-device-train-batch-size 2 --learning-rate 1e-2
        --logging-steps 1 --save-steps 3 --optim adafactor --eval-strategy no --seed 1

made ``out/checkpoint-3``, kept here without the tokenizer's two large files, which are those of
the prepared folder; ``rows.json`` has the rows that the folder had then. The losses are those of
the same run, which was not stopped.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.fit.stage import fit
from pipeline.tokenizer import load_tokenizer
from tests.fit.helpers import state_of, write_prepared

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
LOSSES = {
    1: (6.838923527644231, 1.5099327564239502),
    2: (5.866782760620117, 3.0129215717315674),
    3: (6.327104304387019, 1.3725028038024902),
    4: (5.511891937255859, 3.118778944015503),
    5: (5.8296336298403535, 1.3905540704727173),
    6: (5.058065414428711, 3.594515085220337),
}
"""Step -> loss and gradient norm, of the run that was not stopped."""


def test_a_checkpoint_of_an_earlier_version_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(GOLDEN / "checkpoint" / "checkpoint-3", tmp_path / "out/checkpoint-3")
    manifest = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    rows = json.loads((GOLDEN / "checkpoint" / "rows.json").read_text("utf-8"))
    fingerprint = manifest["identity"]["--data-path (fingerprint)"]
    tokenizer = load_tokenizer(str(GOLDEN / "model"))
    prepared = write_prepared(tmp_path / fingerprint, tokenizer, {"train": rows})
    for name in ("tokenizer.json", "spiece.model"):
        content = (prepared / "tokenizer" / name).read_bytes()
        (folder / name).write_bytes(content)
        # That version's own spiece.model had no rules for lines, which no training reads.
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    (folder / "checkpoint.json").write_text(json.dumps(manifest), "utf-8")
    out = folder.parent
    config = FitConfig(
        data_path=str(prepared),
        model_name_or_path=str(GOLDEN / "model"),
        output_dir=str(out),
        from_scratch=True,
        max_steps=6,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=3,
        optim="adafactor",
        eval_strategy="no",
        seed=1,
    )
    fit(config)
    assert "checkpoint-3" in capsys.readouterr().err
    log = [entry for entry in state_of(out)["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in log] == list(LOSSES)
    for entry in log:  # other processors round otherwise
        found = entry["loss"], entry["grad_norm"]
        assert found == pytest.approx(LOSSES[int(entry["step"])], rel=1e-4)
