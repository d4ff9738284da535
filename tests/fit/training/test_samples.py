"""Sample answers at each evaluation: those of the saved model, and no trace in the training."""

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from pipeline.config import FitConfig
from pipeline.errors import ConfigError
from pipeline.fit.data.dataset import SupervisedDataset
from pipeline.fit.data.loader import micro_batcher_for
from pipeline.fit.data.prepared import open_data
from pipeline.fit.estimate.dry_run import dry_run
from pipeline.fit.model.loading import build_model, load_trained
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from pipeline.fit.training.evaluate import Evaluator
from pipeline.fit.training.samples import EvalSamples
from pipeline.report.run.output import read_run
from pipeline.tokenizer import TextTokenizer
from scripts.ranks import run_in
from tests.fit.helpers import (
    NOT_A_LEAF,
    Hooks,
    assert_same_weights,
    changed,
    fit_with,
    log_of,
    make_rows,
    with_config,
    write_prepared,
)

COUNT, LENGTH = 3, 12


@pytest.fixture(scope="module")
def short(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of ``prepared``, whose answers may have twelve tokens."""
    rows = {"train": make_rows(tokenizer, 20, 0), "eval": make_rows(tokenizer, 5, 1)}
    folder = tmp_path_factory.mktemp("short") / "short"
    return write_prepared(folder, tokenizer, rows, max_target_length=LENGTH)


@pytest.fixture(scope="module")
def telling(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose likeliest token is a clear one, and another in each answer."""
    folder = with_config(tiny, tmp_path_factory.mktemp("telling") / "telling")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "generation_config.json"
    said = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(said | {"return_dict_in_generate": True}), "utf-8")
    return folder


@pytest.fixture
def sampled(config: FitConfig, short: Path, telling: Path) -> FitConfig:
    """Six steps, with dropout; an evaluation and a checkpoint after every other one."""
    return changed(
        config,
        data_path=(str(short),),
        model_name_or_path=str(telling),
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        eval_samples=COUNT,
        per_device_eval_batch_size=2,
    )


def without(config: FitConfig) -> FitConfig:
    return changed(config, eval_samples=0, output_dir=config.output_dir + "-without")


def samples_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text("utf-8").splitlines()]


def answers_of(folder: Path, dataset: Any, rows: list[int], tokenizer: TextTokenizer) -> list[Any]:
    """What stock ``generate`` of a saved model gives, a row at a time: text and end."""
    model = load_trained(folder).eval()
    found = []
    for row in rows:
        ids = dataset[row]["input_ids"][None]
        written = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, num_beams=1)
        written = written.sequences[0, 1:].tolist()
        reason = "stop" if tokenizer.eos_id in written else "length"
        found.append((tokenizer.decode(written), reason))
    return found


def test_they_are_answers_of_the_saved_model_and_training_is_the_same_to_the_bit(
    sampled: FitConfig, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plain = fit(sampled), fit(without(sampled))
    assert log_of(out) == log_of(plain)
    assert_same_weights(out, plain)
    for name in ("config.json", "generation_config.json", "checkpoint-4/config.json"):
        assert (out / name).read_bytes() == (plain / name).read_bytes()
    for step in (2, 4, 6):  # of all generators
        one, other = (torch.load(f / f"checkpoint-{step}/rng_state.pth") for f in (out, plain))
        assert str(one) == str(other)

    samples, rows = samples_in(out), [0, 2, 4]
    dataset = SupervisedDataset(sampled.data_path[0], "eval")
    names = ["step", "conversation_id", "turn", "question", "answer", "reference", "finish_reason"]
    assert [list(sample) for sample in samples] == [names] * 3 * COUNT
    assert [sample["step"] for sample in samples] == [2] * 3 + [4] * 3 + [6] * 3
    for step in (2, 4, 6):
        told = [sample for sample in samples if sample["step"] == step]
        expected = answers_of(out / f"checkpoint-{step}", dataset, rows, tokenizer)
        assert [(s["answer"], s["finish_reason"]) for s in told] == expected
        assert [s["conversation_id"] for s in told] == [f"c{row}" for row in rows]
        sides = [[tokenizer.decode(s.tolist()) for s in dataset[row].values()] for row in rows]
        assert [[s["question"], s["reference"]] for s in told] == sides
    assert len({sample["answer"] for sample in samples}) > 5, "nothing is compared"
    assert {sample["finish_reason"] for sample in samples} == {"stop", "length"}
    assert f"step 4/6: {COUNT} sample answers in samples.jsonl" in capsys.readouterr().err
    shown = read_run(out, "run").samples
    assert [(s.step, s.answer) for s in shown] == [(s["step"], s["answer"]) for s in samples]


@pytest.mark.slow
def test_a_killed_run_leaves_the_file_of_a_whole_one(sampled: FitConfig, tmp_path: Path) -> None:
    config = changed(sampled, eval_steps=1, save_steps=3, output_dir=str(tmp_path / "killed"))
    path = tmp_path / "killed" / "samples.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": 1, "answer": "of an earlier run"}\n')

    def kill(step: int, _: Any) -> None:
        if step == 6:
            raise MemoryError("the machine is gone")

    with pytest.raises(MemoryError):
        fit(config, callback=Hooks(step_end=kill))
    steps = [sample["step"] for sample in samples_in(path.parent)]
    assert steps == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3, "past the checkpoint"
    with path.open("ab") as file:
        file.write(b'{"step": 3, "answ')  # as a machine that lost its power leaves it
    fit(config)
    whole = fit(changed(config, output_dir=str(tmp_path / "whole")))
    assert path.read_bytes() == (whole / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_a_signal_ends_an_answer_and_the_resumed_run_writes_it(
    sampled: FitConfig, tmp_path: Path
) -> None:
    """The evaluation's first batches, then some ids of the first answers, then SIGTERM."""
    calls = itertools.count(1)
    stop = Hooks(prediction_step=lambda: next(calls) == 9 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as raised:
        fit(sampled, callback=stop)
    out = Path(sampled.output_dir)
    assert raised.value.code == 143 and (out / "checkpoint-2").is_dir()
    assert next(calls) == 10, "not a token more"
    assert not (out / "samples.jsonl").exists()
    fit(sampled)
    whole = fit(changed(sampled, output_dir=str(tmp_path / "whole")))
    assert (out / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert log_of(out) == log_of(whole)


def test_each_eval_set_has_its_samples(sampled: FitConfig, train_only: Path) -> None:
    out = fit(changed(sampled, eval_data_path=(f"other={train_only}",), max_steps=2))
    samples = samples_in(out)
    assert [sample.get("eval_set") for sample in samples] == [None] * 3 + ["other"] * 3
    assert [sample["conversation_id"] for sample in samples[3:]] == ["c0", "c9", "c19"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"bf16": True}, {"gradient_checkpointing": True}, {"lora_r": 4}, {"lora_r": 4, "bf16": True}],
    ids=str,
)
def test_with_other_ways_to_train(
    sampled: FitConfig, tokenizer: TextTokenizer, changes: dict[str, Any]
) -> None:
    if "lora_r" in changes:
        pytest.importorskip("peft", reason="the extra peft is not installed")
    config = changed(sampled, max_steps=3, eval_steps=2, **changes)
    out, plain = fit(config), fit(without(config))
    assert log_of(out) == log_of(plain)
    told = [(s["answer"], s["finish_reason"]) for s in samples_in(out) if s["step"] == 2]
    assert len(told) == COUNT
    if not config.bf16:
        dataset = SupervisedDataset(config.data_path[0], "eval")
        assert told == answers_of(out / "checkpoint-2", dataset, [0, 2, 4], tokenizer)


@pytest.mark.slow
@NOT_A_LEAF
def test_compiled_layers_run_as_they_are_meanwhile(sampled: FitConfig) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    config = changed(sampled, torch_compile=True, max_steps=2)
    out = fit_with(config, compile_backend=backend)
    counted = len(graphs)
    torch._dynamo.reset()
    plain = fit_with(without(config), compile_backend=backend)
    assert len(graphs) - counted == counted, "none is made for an answer's lengths"
    assert log_of(out) == log_of(plain)
    assert len(samples_in(out)) == COUNT


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"fsdp": "full_shard"}, {"fsdp": "full_shard", "bf16": True}]
)
def test_two_processes_write_the_answers_of_one(
    sampled: FitConfig, telling: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    still = str(with_config(telling, tmp_path / "still", dropout_rate=0.0))
    config = changed(sampled, model_name_or_path=still, train_batch_size=4)
    two = changed(config, output_dir=str(tmp_path / "two"), **changes)
    for run in (two, without(two)):
        run_in(2, fit, run, folder=tmp_path / "said")
    assert log_of(Path(two.output_dir)) == log_of(Path(without(two).output_dir))
    samples = samples_in(Path(two.output_dir))
    assert [sample["step"] for sample in samples] == [2] * 3 + [4] * 3 + [6] * 3
    if not two.bf16:  # rounding decides there what is the likeliest
        assert samples == samples_in(fit(config))


@pytest.mark.slow
def test_the_first_process_decides(sampled: FitConfig, tmp_path: Path) -> None:
    """In the others another id is the likeliest, and each answer would end elsewhere."""
    run_in(1, write_samples, sampled, tmp_path / "alone", folder=tmp_path / "said")
    run_in(3, write_samples, sampled, tmp_path / "three", folder=tmp_path / "said")
    said = [(tmp_path / f"three-{rank}").read_text() for rank in range(3)]
    assert said == [(tmp_path / "alone-0").read_text()] * 3


def write_samples(config: FitConfig, result: Path) -> None:
    """Answer with weights that are another process's turned about."""
    accelerator, data = Accelerator(cpu=True), open_data(config)
    model: Any = build_model(config.model, data.tokenizer)
    with torch.no_grad():
        model.lm_head.weight *= 1 - 0.7 * accelerator.process_index
    assert data.eval is not None
    micro_batcher = micro_batcher_for(data.eval, model.config, 2, accelerator.device)
    evaluator = Evaluator(data.eval, micro_batcher, 0, data.tokenizer, accelerator)
    samples = EvalSamples(evaluator=evaluator, count=COUNT, batch_size=2, max_new_tokens=LENGTH)
    found = samples.answer(SummedTokenLoss(model))
    Path(f"{result}-{accelerator.process_index}").write_text(json.dumps(found))


def test_what_cannot_be_is_refused_and_a_dry_run_tells_of_them(
    sampled: FitConfig, train_only: Path
) -> None:
    for changes in ({"eval_strategy": "no"}, {"data_path": (str(train_only),), "eval_steps": None}):
        with pytest.raises(ConfigError, match=r"evaluat.*--eval-s"):
            fit(changed(sampled, **changes))
    with pytest.raises(ConfigError, match=r"--eval-samples.*give 0 or more"):
        changed(sampled, eval_samples=-1)
    (line,) = [li for li in dry_run(sampled, peak=1e12) if li.startswith("sample answers")]
    assert "per eval set and evaluation, each of up to 12 tokens" in line
