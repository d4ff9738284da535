"""How good answers are: fit's own loss, the metrics' own scores, and how sure they are."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pipeline.cli import run
from pipeline.config import PrepareConfig
from pipeline.errors import ConfigError, InputError, ModelError, PreparedFolderError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import micro_batcher_for
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.training.evaluate import Evaluator
from pipeline.generation.config import EvalConfig
from pipeline.generation.evaluate.intervals import Draws
from pipeline.generation.evaluate.metrics import Metric, answer_metrics, ratio
from pipeline.generation.evaluate.report import table
from pipeline.generation.evaluate.stage import evaluate
from pipeline.prepare.stage import prepare
from pipeline.tokenizer import TextTokenizer
from scripts.tiny_t5 import SAMPLE

NAMES = ["loss", "bits_per_byte", "chrf", "bleu", "rouge_l", "exact_match", "length_ratio"]
NAMES += ["ended", "repeated_4grams"]

BOUNDS = ("value", "low", "high")


@pytest.fixture(scope="module")
def prepared(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PrepareConfig(
        data_path=(str(SAMPLE),),
        model_name_or_path=str(trained),
        output_dir=str(tmp_path_factory.mktemp("data")),
        model_max_length=128,
        eval_fraction=0.3,
        num_workers=1,
    )
    return Path(prepare(config))


@pytest.fixture(scope="module")
def report(prepared: Path, trained: Path, tiny_t5: Path) -> dict[str, Any]:
    config = EvalConfig(
        models=(str(trained),),
        data_path=(str(prepared),),
        max_new_tokens=8,
        max_samples=12,
        baseline=str(tiny_t5),
    )
    return evaluate(config)


def test_the_loss_is_that_of_fits_evaluation(
    prepared: Path, trained: Path, plain_model: Any, tokenizer: TextTokenizer
) -> None:
    dataset = SupervisedDataset(prepared, "eval")
    micro_batcher = micro_batcher_for(dataset, plain_model.config, 4, torch.device("cpu"))
    evaluator = Evaluator(dataset, micro_batcher, 0, tokenizer, Accelerator(cpu=True))
    expected = evaluator.run(SummedTokenLoss(plain_model))
    assert isinstance(expected, dict)
    config = EvalConfig(models=(str(trained),), data_path=(str(prepared),), generate=False)
    (found,) = evaluate(config)["models"].values()
    metrics = found["metrics"]
    assert list(metrics) == ["loss", "bits_per_byte"]
    assert metrics["loss"]["value"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    bits = expected["eval_bits_per_byte"]
    assert metrics["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-6)
    assert metrics["loss"]["low"] < metrics["loss"]["value"] < metrics["loss"]["high"]


def test_row_losses_are_parts_of_the_loss(plain_model: Any) -> None:
    """For a model whose head is last, and for one whose logits are taken as they are."""
    from transformers import BartConfig, BartForConditionalGeneration

    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
            decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
            pad_token_id=0,
        )
    ).eval()  # fmt: skip
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 1, 0], [9, 9, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]),
        "labels": torch.tensor([[7, 1, -100], [9, 9, 1], [-100, -100, -100]]),
    }
    for model in (plain_model, bart):
        summed = SummedTokenLoss(model).eval()
        with torch.inference_mode():
            rows = summed.row_losses(**batch)
            torch.testing.assert_close(rows.sum(), summed(**batch))
            for i in range(3):
                one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
                torch.testing.assert_close(rows[i], summed(**one), rtol=1e-4, atol=1e-4)
        assert rows[2] == 0


def test_a_report(report: dict[str, Any], prepared: Path, trained: Path, tiny_t5: Path) -> None:
    json.dumps(report, allow_nan=False)
    assert report["pairs"] == 12
    untrained, ours = report["models"].values()
    assert list(report["models"]) == [f"{tiny_t5} (baseline)", str(trained)]
    assert list(ours["metrics"]) == list(untrained["metrics"]) == NAMES
    assert untrained["metrics"]["ended"]["value"] == 0.0
    assert ours["metrics"]["loss"]["value"] != untrained["metrics"]["loss"]["value"]
    assert list(ours["groups"]) == ["answer length", "history", "code"]
    for kind in ours["groups"].values():
        assert sum(group["pairs"] for group in kind.values()) == 12
    code = ours["groups"]["code"]
    parts = [g["pairs"] * g["metrics"]["exact_match"]["value"] for g in code.values()]
    assert sum(parts) == pytest.approx(12 * ours["metrics"]["exact_match"]["value"])
    (difference,) = report["differences"]
    assert (difference["than"], difference["model"]) == tuple(report["models"])
    for name, interval in difference["metrics"].items():
        expected = ours["metrics"][name]["value"] - untrained["metrics"][name]["value"]
        assert interval["value"] == pytest.approx(expected)
        assert interval["low"] <= interval["high"]
    assert "space:yes" in report["signatures"]["chrf"]


def test_the_scores_are_the_libraries_own() -> None:
    import sacrebleu

    answers = ["the cat sat on the mat", "if x:\n    y = 1", "nothing alike", ""]
    references = ["the cat lay on the mat", "if x:\n    y = 1", "quite other words", "text"]
    found = {m.name: m for m in answer_metrics(answers, references, [True, False, True, True])}
    value = {name: m.value(m.columns.sum(axis=0)) for name, m in found.items()}
    chrf = sacrebleu.corpus_chrf(answers, [references], remove_whitespace=False)
    assert value["chrf"] == pytest.approx(chrf.score)
    assert value["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, [references]).score)
    assert value["exact_match"] == 0.25
    assert value["ended"] == 0.75
    assert value["length_ratio"] == pytest.approx(
        sum(map(len, answers)) / sum(map(len, references))
    )
    flat = answer_metrics(["if x: y = 1"], references[1:2], [True])
    by_name = {m.name: m.value(m.columns.sum(axis=0)) for m in flat}
    assert by_name["rouge_l"] < 1 and by_name["chrf"] < 100, "white space counts"


def test_intervals_hold_what_they_should() -> None:
    """The interval of a mean is that of its standard error; a paired one is narrower."""
    drawn = np.random.default_rng(0)
    values = drawn.normal(5, 2, 400)
    draws = Draws([str(i) for i in range(400)], seed=1)
    metric = Metric("m", np.stack([values, np.ones(400)], axis=1), ratio)
    found = draws.interval(metric)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.2)
    assert found.value - found.low == pytest.approx(half, rel=0.2)
    shifted = values + drawn.normal(0.2, 0.1, 400)
    other = Metric("m", np.stack([shifted, np.ones(400)], axis=1), ratio)
    difference = draws.difference(metric, other)
    assert 0.15 < difference.low < difference.value < difference.high < 0.25
    # Pairs of one conversation are one draw.
    together = Draws([str(i // 40) for i in range(400)], seed=1).interval(metric)
    assert together.value == pytest.approx(found.value)
    few = draws.interval(metric, np.arange(400) < 3)
    assert few.value == pytest.approx(values[:3].mean())
    assert values[:3].min() <= few.low <= few.high <= values[:3].max()


def test_one_conversation_has_no_intervals() -> None:
    """It says nothing of others: the first line says so, and no difference gets a star."""
    metrics = {"loss": {"value": 1.5, "low": 1.5, "high": 1.5}, "bleu": dict.fromkeys(BOUNDS, 3e-9)}
    groups = {"code": {"no code": {"pairs": 1, "metrics": metrics}}}
    report = {
        "pairs": 1,
        "conversations": 1,
        "models": {"m": {"metrics": metrics, "groups": groups}},
        "differences": [{"model": "m", "than": "b", "metrics": metrics}],
        "signatures": {},
    }
    first, *lines = table(report)
    assert first == "1 pair of 1 conversation; no intervals: one conversation"
    assert "code: no code (1 pair)" in lines
    assert any(line.split() == ["bleu", "0", "[0,", "0]"] for line in lines)
    assert not [line for line in lines if line.endswith("*")]
    several = "\n".join(table({**report, "pairs": 4, "conversations": 2}))
    assert several.startswith("4 pairs of 2 conversations; 95 % intervals\n")
    assert "loss" in next(line for line in several.splitlines() if line.endswith("*"))


def test_conversations_as_they_are(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """Data that was not prepared is, for the model, as fit would have it."""
    records = json.loads(SAMPLE.read_text(encoding="utf-8"))[:6]
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    args = ["eval", str(trained), "--data-path", str(tmp_path / "a.json"), "--max-new-tokens", "4"]
    assert run([*args, "--max-samples", "5"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["pairs"] == 5
    assert "95 % intervals" in err and "chrf" in err
    assert "in 6 records, 0 of them rejected" in err
    assert "prepared folder" not in err, "it is gone by then"


def test_bad_input_is_one_line(
    trained: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    golden = Path(__file__).parents[1] / "golden" / "prepared"
    with pytest.raises(ModelError, match="another model"):
        evaluate(EvalConfig(models=(str(trained),), data_path=(str(golden),)))
    capsys.readouterr()
    with pytest.raises(InputError, match="no trained model"):
        evaluate(EvalConfig(models=(str(trained), str(tmp_path)), data_path=(str(prepared),)))
    assert not capsys.readouterr().err, "not after the first one is judged"
    config = PrepareConfig(
        data_path=(str(SAMPLE),), model_name_or_path=str(trained), output_dir=str(tmp_path),
        num_workers=1,
    )  # fmt: skip
    with pytest.raises(PreparedFolderError, match="no pairs to evaluate on"):
        evaluate(EvalConfig(models=(str(trained),), data_path=(str(prepare(config)),)))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "sacrebleu" else find(name, *a),
    )
    with pytest.raises(ConfigError, match="not installed") as error:
        evaluate(EvalConfig(models=(str(trained),), data_path=(str(prepared),)))
    assert "no sacrebleu" in str(error.value) and "duet-t5[eval]" in str(error.value)
