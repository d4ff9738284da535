"""LoRA: what is trained, what is saved, and that plain PEFT loads it."""

import importlib.util
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from pipeline.cli import run
from pipeline.config import FitConfig
from pipeline.config.views import LoraSettings
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.fit.estimate.memory import optimizer_bytes
from pipeline.fit.model.adapter import find_base, with_adapter_settings
from pipeline.fit.model.fingerprint import name_of_weights
from pipeline.fit.model.loading import build_model, load_trained
from pipeline.fit.model.lora import add_adapter, is_adapter
from pipeline.fit.model.loss import SummedTokenLoss
from pipeline.fit.stage import fit
from pipeline.fit.training.optim import muon_matrices
from pipeline.tokenizer import TextTokenizer
from pipeline.tokenizer.vocabulary import NEW_PIECES
from tests.fit.checkpoint.test_resume import fit_and_stop
from tests.fit.distributed.test_processes import torchrun
from tests.fit.helpers import changed, log_of, weights_of, with_config, write_prepared

pytest.importorskip("peft", reason="the extra peft is not installed")

PEFT_WARNINGS = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")


@pytest.fixture
def small(config: FitConfig) -> FitConfig:
    return changed(config, lora_r=4, save_strategy="steps", save_steps=3)


@pytest.fixture(params=["untied", "tied"])
def base(request: pytest.FixtureRequest, tiny: Path, tied: Path) -> Path:
    return tied if request.param == "tied" else tiny


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def piece_ids(tokenizer: TextTokenizer) -> list[int]:
    return [tokenizer.backend.get_vocab()[piece] for piece in NEW_PIECES]


def plain(base: Path, adapter: Path) -> Any:
    """Load base and adapter as people do, without this project."""
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    return PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), adapter).eval()


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_the_adapter_and_the_new_rows_alone_are_trained(
    small: FitConfig, tiny: Path, tied: Path, tokenizer: TextTokenizer, kind: str
) -> None:
    base = tiny if kind == "untied" else tied
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    out = fit(changed(small, model_name_or_path=str(base)))
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert not (out / "model.safetensors").exists()
    assert not (out / "config.json").exists()
    assert (out / "spiece.model").is_file()
    saved = adapter_of(out)
    layers = {name.split(".")[-3] for name in saved if ".lora_A" in name}
    assert layers == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
    deltas = {name: value for name, value in saved.items() if "trainable_tokens" in name}
    assert all(value.shape == (9, 32) for value in deltas.values())
    rest = {name for name in saved if ".lora_" not in name}
    assert rest == set(deltas)
    inputs = [value for name, value in deltas.items() if "lm_head" not in name]
    assert all(torch.equal(inputs[0], value) for value in inputs), "one matrix, one set of rows"
    assert any("lm_head" in name for name in deltas) == (base.name == "tiny")
    fresh = build_model(small.model, tokenizer).get_input_embeddings().weight[piece_ids(tokenizer)]
    moved = ~torch.isclose(inputs[0], fresh).all(dim=1)
    assert moved[:3].all(), "newline, tab and < are in the rows"


def test_base_weights_stay_as_they_are(small: FitConfig, tokenizer: TextTokenizer) -> None:
    model = build_model(small.model, tokenizer)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels = torch.tensor([[*piece_ids(tokenizer), 1]])
    for _ in range(3):
        loss = SummedTokenLoss(model)(labels, torch.ones_like(labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert len(frozen) > 50
    assert [n for n, value in frozen.items() if not torch.equal(value, after[n])] == []


def test_the_gradient_of_the_new_rows_is_that_of_full_training(
    small: FitConfig, still: Path, tied: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    """The adapter starts at zero, so at first rows of both embeddings get the same gradient."""
    still_tied = with_config(tied, tmp_path / "still", dropout_rate=0.0)
    ids = piece_ids(tokenizer)
    labels = torch.tensor([[5, *ids, 6, 1]])
    for base in (still, still_tied):
        options = changed(small, model_name_or_path=str(base))
        full = build_model(changed(options, lora_r=0).model, tokenizer)
        part = build_model(changed(options, lora_dropout=0.0).model, tokenizer)
        losses = [SummedTokenLoss(m)(labels, torch.ones_like(labels), labels) for m in (full, part)]
        assert torch.allclose(*losses, rtol=1e-6)
        for loss in losses:
            loss.backward()
        deltas = {n: p for n, p in part.named_parameters() if "trainable_tokens" in n}
        assert len(deltas) == (1 if base == still_tied else 2)
        for name, parameter in deltas.items():
            matrix = full.lm_head if "lm_head" in name else full.shared
            order = ids[::-1] if "lm_head" in name else ids
            assert matrix.weight.grad is not None
            torch.testing.assert_close(
                parameter.grad, matrix.weight.grad[order], rtol=1e-4, atol=1e-6
            )


@PEFT_WARNINGS
def test_plain_peft_loads_it_and_it_is_what_is_merged(small: FitConfig, base: Path) -> None:
    out = fit(changed(small, model_name_or_path=str(base), save_strategy="no"))
    given = {"input_ids": torch.tensor([[5, 9, 1]]), "labels": torch.tensor([[7, 8, 1]])}
    with torch.inference_mode():
        theirs, merged = (model(**given).logits for model in (plain(base, out), load_trained(out)))
    assert torch.allclose(merged, theirs, atol=1e-5)


@pytest.mark.slow
@PEFT_WARNINGS
def test_a_newline_is_written_after_lora(
    small: FitConfig, base: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    """A model that has learnt to write learns an answer; plain transformers and PEFT load it."""
    answer = "if x < 3:\n\treturn {x}"
    base = with_config(base, tmp_path / "still", dropout_rate=0.0)
    texts = ["What is the capital?", "if x 3: return x", answer]
    question, plain_answer, target = ([*i, tokenizer.eos_id] for i in tokenizer.encode_batch(texts))
    data = [
        str(write_prepared(tmp_path / name, tokenizer, {"train": [(question, rows)]}))
        for name, rows in (("plain", plain_answer), ("lines", target))
    ]
    settings = changed(small, logging_steps=150, save_strategy="no", max_steps=100)
    first = changed(
        settings,
        data_path=data[0],
        model_name_or_path=str(base),
        output_dir=str(tmp_path / "first"),
        lora_r=0,
    )
    base = fit(first)
    out = fit(
        changed(
            settings,
            data_path=data[1],
            model_name_or_path=str(base),
            lora_r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            learning_rate=1e-2,
            max_steps=200,
        )
    )
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([question])
    model = plain(base, out)
    written = model.generate(input_ids=ids, max_new_tokens=40)[0]
    assert theirs.decode(written, skip_special_tokens=True) == answer


@pytest.mark.parametrize("optim", ["adamw_torch", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(
    small: FitConfig, tmp_path: Path, optim: str
) -> None:
    small = changed(small, optim=optim)
    whole = fit(small)
    again = changed(small, output_dir=str(tmp_path / "again"))
    fit_and_stop(again)
    with pytest.raises(CheckpointError, match="--lora-r"):
        fit(changed(again, lora_r=0))
    with pytest.raises(CheckpointError, match="--lora-alpha"):
        fit(changed(again, lora_alpha=8))
    resumed = fit(again)
    one, other = adapter_of(whole), adapter_of(resumed)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert log_of(whole) == log_of(resumed)


@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one(
    small: FitConfig, still: Path, tmp_path: Path
) -> None:
    small = changed(small, model_name_or_path=str(still), train_batch_size=4, lora_dropout=0.0)
    one, two = fit(small), tmp_path / "two"
    torchrun(changed(small, output_dir=str(two)), 2, "--lora-r=4", "--lora-dropout=0")
    first, second = adapter_of(one), adapter_of(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-4)


def test_recomputed_activations_change_nothing(small: FitConfig, tmp_path: Path) -> None:
    again = changed(small, output_dir=str(tmp_path / "again"), gradient_checkpointing=True)
    one, other = adapter_of(fit(small)), adapter_of(fit(again))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5)


def test_a_finished_run_has_nothing_to_do(
    small: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(small)
    capsys.readouterr()
    fit(small)
    assert "already finished" in capsys.readouterr().err


def test_a_whole_model_takes_the_place_of_an_adapter(small: FitConfig) -> None:
    out = fit(changed(small, save_strategy="no"))
    fit(changed(small, lora_r=0, save_strategy="no"))
    assert not is_adapter(out)
    assert weights_of(out)


def test_chat_loads_an_adapter(small: FitConfig, capsys: pytest.CaptureFixture[str]) -> None:
    out = fit(small)
    capsys.readouterr()
    assert run(["chat", str(out), "--message", "Hi", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().err == ""


def test_the_model_card_names_peft(small: FitConfig) -> None:
    out = fit(changed(small, max_steps=1, save_strategy="no"))
    card = ModelCard((out / "README.md").read_text("utf-8"))
    assert card.data.library_name == "peft"
    facts = json.loads((out / "run.json").read_text("utf-8"))
    assert facts["versions"]["peft"] == version("peft")
    assert "bitsandbytes" not in facts["versions"]
    assert f"| peft | {version('peft')} |" in card.text


def test_an_adapter_finds_its_base_from_other_folders(
    small: FitConfig,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = with_config(tiny, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    out = fit(changed(small, model_name_or_path="base", max_steps=1))
    monkeypatch.chdir(tiny)
    assert find_base(out) == str(base.resolve())
    load_trained(out)
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="cannot be found") as error:
        load_trained(out)
    assert error.value.where == str(base.resolve())
    assert str(out / "adapter_config.json") in error.value.do
    (base / "empty").mkdir(parents=True)
    capsys.readouterr()
    assert run(["export", str(out), "--merge", "--output-dir", str(tmp_path / "merged")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"where: {base.resolve()}; got: no config.json; do: put it there" in line


def test_a_base_of_the_hub_keeps_its_name(small: FitConfig, tokenizer: TextTokenizer) -> None:
    whole = build_model(changed(small, lora_r=0).model, tokenizer)
    assert small.lora is not None
    model = add_adapter(whole, small.lora, [], name="org/some-t5")
    assert model.peft_config["default"].base_model_name_or_path == "org/some-t5"


def test_layers_by_name(small: FitConfig, tokenizer: TextTokenizer) -> None:
    model = build_model(changed(small, lora_target_modules="q, v").model, tokenizer)
    named = {n.split(".")[-4] for n, p in model.named_parameters() if ".lora_A" in n}
    assert named <= {"SelfAttention", "EncDecAttention", "q", "v"}
    with pytest.raises(ConfigError, match="q_proj") as error:
        build_model(changed(small, lora_target_modules="q_proj,v").model, tokenizer)
    assert "wi_0" in error.value.do


@pytest.mark.parametrize("name", ["lm_head", "shared"])
@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_an_embedding_gets_no_adapter(
    small: FitConfig, tiny: Path, tied: Path, tokenizer: TextTokenizer, kind: str, name: str
) -> None:
    base = str(tiny if kind == "untied" else tied)
    asked = changed(small, model_name_or_path=base, lora_target_modules=f"q,v,{name}")
    with pytest.raises(ConfigError, match="embedding") as error:
        build_model(asked.model, tokenizer)
    assert error.value.got == name
    offered, _, reason = error.value.do.partition("; ")
    assert offered == "give some of k, o, q, v, wi_0, wi_1, wo"
    assert "lm_head" in reason
    assert "shared are trained anyway" in reason


def test_muon_trains_the_matrices_of_the_adapter(
    small: FitConfig, tokenizer: TextTokenizer
) -> None:
    model = build_model(small.model, tokenizer)
    ids = {id(weight) for weight in muon_matrices(model)}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name, weight in trained.items() if id(weight) in ids} == {
        name for name in trained if ".lora_A." in name or ".lora_B." in name
    }
    assert len(ids) < len(trained), "the rows of the new pieces are AdamW's"


def test_dry_run_counts_what_is_trained(small: FitConfig, tokenizer: TextTokenizer) -> None:
    from pipeline.fit.estimate.dry_run import dry_run

    model = build_model(small.model, tokenizer)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert optimizer_bytes(model, small.optim) == 2 * trained
    full = build_model(changed(small, lora_r=0).model, tokenizer)
    assert optimizer_bytes(full, small.optim) > 4 * trained
    assert any(line.startswith("optimizer") for line in dry_run(small))


def test_dry_run_takes_what_belongs_to_a_rank(
    config: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-path", config.data_path[0], "--model-name-or-path", config.model_name_or_path]
    words += ["--output-dir", config.output_dir, "--dry-run", "--lora-r", "16"]
    words += ["--lora-alpha", "32", "--lora-dropout", "0.1", "--lora-target-modules", "q,v"]
    assert run(["fit", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "optimizer" in out


def test_without_peft_it_is_one_line(small: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find(name, *a)
    )
    with pytest.raises(ConfigError, match=r"duet-t5\[lora\]"):
        fit(small)
    assert not Path(small.output_dir).exists()


def test_what_an_adapter_cannot_be(small: FitConfig, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--from-scratch"):
        changed(small, from_scratch=True)
    with pytest.raises(ConfigError, match="--output-dir"):
        changed(small, output_dir=str(tiny))


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--lora-alpha", "32"), ("--lora-dropout", "0.1"), ("--lora-target-modules", "q,v")],
)
def test_without_a_rank_it_means_nothing(
    config: FitConfig, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-path", config.data_path[0], "--model-name-or-path", config.model_name_or_path]
    words += ["--output-dir", config.output_dir, "--dry-run"]
    assert run(["fit", *words, flag, value]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"where: {flag}; got: {value}; do: give --lora-r 16 too" in line
    assert changed(config, lora_alpha=16, lora_dropout=0.05).lora_r == 0


def test_an_adapter_cannot_add_rows(
    small: FitConfig, tiny: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    few = with_config(tiny, tmp_path / "few", vocab_size=tokenizer.vocab_size - 2)
    weights = load_file(few / "model.safetensors")
    for name in ("shared.weight", "lm_head.weight"):
        weights[name] = weights[name][: tokenizer.vocab_size - 2].clone()
    save_file(weights, few / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="too few embedding rows"):
        build_model(changed(small, model_name_or_path=str(few)).model, tokenizer)


def test_an_adapter_that_does_not_tell_its_base(small: FitConfig, tmp_path: Path) -> None:
    out = fit(small)
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    path = broken / "adapter_config.json"
    values = json.loads(path.read_text("utf-8"))
    del values["base_model_name_or_path"]
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ModelError, match="no base_model_name_or_path"):
        load_trained(broken)
    path.write_text("[1]", "utf-8")
    with pytest.raises(ModelError, match="adapter's config"):
        load_trained(broken)


def test_another_adapter_or_another_base_is_another_run(
    small: FitConfig, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_and_stop(small)
    base = with_config(tiny, tmp_path / "base")
    fit_and_stop(changed(small, model_name_or_path=str(base)))  # a copy is the same
    file = bytearray((base / "model.safetensors").read_bytes())
    file[-1000] ^= 1
    (base / "model.safetensors").write_bytes(file)
    refused: dict[str, dict[str, Any]] = {
        "--lora-r": {"lora_r": 8},
        "--lora-alpha": {"lora_alpha": 8},
        "--lora-dropout": {"lora_dropout": 0.2},
        "--lora-target-modules": {"lora_target_modules": "q,v"},
        "--model-name-or-path (weights)": {"model_name_or_path": str(base)},
    }
    for where, changes in refused.items():
        with pytest.raises(CheckpointError, match="other settings") as caught:
            fit(changed(small, resume_anyway=True, **changes))
        assert caught.value.where == where


def test_the_name_of_weights_in_several_files(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(tiny)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 2
    before = name_of_weights(str(tmp_path), None)
    for part in (parts[0], parts[-1]):
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
        assert name_of_weights(str(tmp_path), None) != before
        content[-1] ^= 1
        part.write_bytes(content)
    assert name_of_weights(str(tmp_path), None) == before


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"weight_map": 3}'])
def test_a_damaged_index_of_the_base_is_one_line(
    small: FitConfig, tiny: Path, tmp_path: Path, content: str
) -> None:
    base = with_config(tiny, tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        fit(changed(small, model_name_or_path=str(base)))
    assert error.value.where == str(base)
    assert "model.safetensors.index.json is damaged" in error.value.got
    assert not Path(small.output_dir).exists()


def test_training_starts_from_a_saved_adapter(
    small: FitConfig, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    """Its settings are the adapter's, its values where the first run left them."""
    first = fit(changed(small, lora_alpha=8, lora_dropout=0.0, lora_target_modules="q,v"))
    second = changed(
        small, lora_r=0, model_name_or_path=str(first), output_dir=str(tmp_path / "second")
    )
    settings = with_adapter_settings(second)
    assert settings.lora == LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=("q", "v"))
    state = build_model(settings.model, tokenizer).state_dict()
    saved = adapter_of(first)
    for name, value in saved.items():
        # PEFT leaves the adapter's name out of what it saves.
        head, _, tail = name.rpartition(".weight" if ".lora_" in name else "_delta")
        found = state[f"{head}.default.weight" if ".lora_" in name else f"{head}_delta.default"]
        assert torch.equal(found, value), (name, tail)
    fit(changed(second, dry_run=True))
    out = fit(changed(second, max_steps=2))
    assert find_base(out) == find_base(first)
    after = adapter_of(out)
    assert after.keys() == saved.keys()
    assert any(not torch.equal(after[name], saved[name]) for name in saved)
    fit(changed(second, max_steps=2))  # finished: nothing to do


def test_a_base_is_found_in_the_folder_for_files_of_the_hub(
    small: FitConfig, tiny: Path, tmp_path: Path
) -> None:
    cache, commit = tmp_path / "hub", "0" * 40
    repo = cache / "models--org--cached"
    shutil.copytree(tiny, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    first = fit(changed(small, model_name_or_path="org/cached", cache_dir=str(cache), max_steps=1))
    assert find_base(first, str(cache)) == "org/cached"
    second = changed(small, model_name_or_path=str(first), output_dir=str(tmp_path / "second"))
    fit(changed(second, cache_dir=str(cache), max_steps=1))
    with pytest.raises(ModelError, match="cannot be found"):
        fit(changed(second, output_dir=str(tmp_path / "third"), max_steps=1))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"lora_r": 8}, "--lora-r"),
        ({"lora_r": 4, "lora_target_modules": "q"}, "--lora-target-modules"),
    ],
)
def test_a_flag_that_contradicts_the_adapter_is_one_line(
    small: FitConfig, tmp_path: Path, changes: dict[str, Any], where: str
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    saved = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "lora_dropout": 0.05}
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(saved | {"target_modules": ["v", "q"]}))
    config = changed(small, model_name_or_path=str(adapter), **changes)
    with pytest.raises(ConfigError, match="of the adapter") as caught:
        with_adapter_settings(config)
    assert caught.value.where == where
    same = changed(small, model_name_or_path=str(adapter), lora_target_modules="q, v")
    assert with_adapter_settings(same).lora_r == 4
    path.write_text(json.dumps(saved | {"target_modules": ["q"], "use_dora": True}))
    with pytest.raises(ConfigError, match="of this kind") as caught:
        with_adapter_settings(config)
    assert caught.value.got == "use_dora True"
