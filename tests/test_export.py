"""Exported folders give what the trained one gives, in the programs that they are made for."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import run
from pipeline.config import ExportConfig, FitConfig
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.export import export
from pipeline.fit.model.loading import load_trained
from pipeline.fit.stage import fit
from pipeline.store.atomic import locked_folder
from pipeline.tokenizer import load_tokenizer
from scripts.tiny_t5 import SAMPLE, read_texts
from tests.fit.helpers import weights_of, with_config

GOLDEN = Path(__file__).parent / "golden"
PROMPTS = [text[: 20 + 5 * i] for i, text in enumerate(read_texts(SAMPLE)[:20])]


@pytest.fixture(scope="module", params=["untied", "tied"])
def trained(
    request: pytest.FixtureRequest, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as fit leaves it."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("trained") / "out"
    is_tied = request.param == "tied"
    with_config(tiny_t5, folder, tie_word_embeddings=is_tied)
    weights = load_file(folder / "model.safetensors")
    if is_tied:
        del weights["lm_head.weight"]
        weights["shared.weight"][0] *= 0.01  # a tied model at random writes what it reads
    else:
        weights["lm_head.weight"] *= 20  # so that the likeliest token is a clear one
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    load_tokenizer(str(tiny_t5)).save(folder, model_max_length=128)
    return folder


def test_prompts_are_twenty() -> None:
    assert len({prompt for prompt in PROMPTS if prompt}) == 20


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")
def test_merged_logits_are_those_of_base_and_adapter(tiny_t5: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny_t5, base)
    load_tokenizer(str(tiny_t5)).save(base, model_max_length=128)
    config = FitConfig(
        data_path=str(_prepared(tiny_t5, tmp_path)),
        model_name_or_path=str(base),
        output_dir=str(tmp_path / "adapter"),
        max_steps=5,
        learning_rate=5e-2,
        lora_r=4,
        save_strategy="no",
        eval_strategy="no",
    )
    adapter = fit(config)
    with pytest.raises(ConfigError, match="--merge"):
        export(ExportConfig(model=str(adapter), output_dir=str(tmp_path / "merged")))
    merged = export(
        ExportConfig(model=str(adapter), output_dir=str(tmp_path / "merged"), merge=True)
    )
    ours, info = AutoModelForSeq2SeqLM.from_pretrained(merged, output_loading_info=True)
    assert not any(info.values())
    plain = AutoModelForSeq2SeqLM.from_pretrained(base)
    before = plain.lm_head.weight.clone()
    theirs = PeftModel.from_pretrained(plain, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    new = tokenizer.convert_tokens_to_ids(["\n", "{"])
    inputs = {"input_ids": torch.tensor([[*new, 5, 6, 1]]), "labels": torch.tensor([[7, *new, 1]])}
    with torch.inference_mode():
        expected = theirs(**inputs).logits
        torch.testing.assert_close(ours.eval()(**inputs).logits, expected, rtol=0, atol=1e-5)
    changed_rows = (weights_of(merged)["lm_head.weight"] != before).any(dim=1).nonzero().flatten()
    assert len(changed_rows) == 9, "the new pieces' rows, and no others"


def _prepared(tiny_t5: Path, tmp_path: Path) -> Path:
    from tests.fit.helpers import make_rows, write_prepared

    tokenizer = load_tokenizer(str(tiny_t5))
    return write_prepared(tmp_path / "data", tokenizer, {"train": make_rows(tokenizer, 12, 0)})


def test_a_whole_model_is_written_again(trained: Path, tmp_path: Path) -> None:
    out = export(ExportConfig(model=str(trained), output_dir=str(tmp_path / "a" / "copy")))
    one, other = weights_of(trained), weights_of(out)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (out / "spiece.model").read_bytes() == (trained / "spiece.model").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["copy"]


def test_what_a_killed_export_left_is_deleted_by_the_next(trained: Path, tmp_path: Path) -> None:
    """That of a process that lives stays, and so does that of another target."""
    out = tmp_path / "copy"
    dead = [tmp_path / f".copy.{pid}.tmp" for pid in (os.getpid(), 999_999_999)]
    others = [tmp_path / name for name in (".copy.7.tmp", ".copy.b.7.tmp", ".other.7.tmp")]
    for folder in (*dead, *others):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        (folder / "left").touch()
    with locked_folder(others[0]):
        export(ExportConfig(model=str(trained), output_dir=str(out)))
    assert sorted(tmp_path.iterdir()) == sorted([out, *others])
    assert all((folder / "left").exists() for folder in others)
    assert not (out / "left").exists()


def test_an_export_that_runs_is_locked(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(folder: Path, *_: Any) -> None:
        with pytest.raises(OutputError, match="another process"), locked_folder(folder):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.export.save_model", save)
    with pytest.raises(KeyboardInterrupt):
        export(ExportConfig(model=str(trained), output_dir=str(tmp_path / "copy")))
    assert not any(tmp_path.iterdir())


def test_ctranslate2_writes_what_transformers_writes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty prompts, greedily; and the same log-probabilities of given tokens."""
    ctranslate2 = pytest.importorskip(
        "ctranslate2", reason="the extra ctranslate2 is not installed"
    )
    from transformers import AutoTokenizer

    out = tmp_path / "ct2"
    args = ["export", str(trained), "--output-dir", str(out), "--format", "ctranslate2"]
    assert run(args) == 0
    assert capsys.readouterr().out == f"{out}\n"
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    model = load_trained(trained).eval()
    translator = ctranslate2.Translator(str(out), device="cpu", intra_threads=1)
    different = set()
    for prompt in PROMPTS:
        ids = tokenizer(prompt, split_special_tokens=True).input_ids
        source = tokenizer.convert_ids_to_tokens(ids)
        written = model.generate(torch.tensor([ids]), max_new_tokens=24, num_beams=1)[0, 1:]
        expected = [i for i in written.tolist() if i != tokenizer.eos_token_id]
        [result] = translator.translate_batch([source], beam_size=1, max_decoding_length=24)
        known = [i if i < len(tokenizer) else f"<spare_{i}>" for i in expected]
        tokens = [i if isinstance(i, str) else tokenizer.convert_ids_to_tokens(i) for i in known]
        assert result.hypotheses[0] == tokens
        different.add(tuple(tokens))
    assert len(different) > 1
    target = [5, 6, tokenizer.convert_tokens_to_ids("{"), tokenizer.eos_token_id]
    labels = torch.tensor([target])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), labels=labels).logits[0]
    log_p = logits.log_softmax(-1).gather(1, labels[0, :, None])[:, 0]
    [scored] = translator.score_batch([source], [tokenizer.convert_ids_to_tokens(target[:-1])])
    assert scored.log_probs == pytest.approx(log_p.tolist(), abs=1e-3)


def test_without_ctranslate2_it_is_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    config = ExportConfig(model=str(trained), output_dir=str(tmp_path / "x"), format="ctranslate2")
    with pytest.raises(ConfigError, match=r"duet-t5\[ctranslate2\]"):
        export(config)


def test_bad_folders_are_one_line(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained model"):
        export(ExportConfig(model=str(tmp_path), output_dir=str(tmp_path / "x")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="already exists"):
        export(ExportConfig(model=str(trained), output_dir=str(tmp_path / "full")))
    assert (tmp_path / "full" / "file").exists()
