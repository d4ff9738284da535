"""Settings validate themselves: each field's bounds in one loop, then what two say together."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ExportConfig, FitConfig, PrepareConfig, TrainConfig
from pipeline.config.views import Sharding
from pipeline.errors import ConfigError
from pipeline.generation.config import ChatConfig

FIT: dict[str, Any] = {"data_path": "d", "model_name_or_path": "m", "output_dir": "o"}
PREPARE: dict[str, Any] = {"data_path": ("d",), "model_name_or_path": "m"}


@pytest.mark.parametrize(
    ("kind", "values", "where", "got", "do"),
    [
        (FitConfig, {"learning_rate": 0.0}, "--learning-rate", "0.0", "more than 0"),
        (FitConfig, {"learning_rate": float("nan")}, "--learning-rate", "nan", "more than 0"),
        (FitConfig, {"max_grad_norm": float("inf")}, "--max-grad-norm", "inf", "finite"),
        (FitConfig, {"max_steps": 0}, "--max-steps", "0", "or -1"),
        (FitConfig, {"max_steps": -2}, "--max-steps", "-2", "or -1"),
        (FitConfig, {"seed": 1 << 32}, "--seed", "4294967296", "less than 4,294,967,296"),
        (FitConfig, {"save_total_limit": 0}, "--save-total-limit", "0", "or leave it out"),
        (FitConfig, {"fp16": True}, "--fp16", "True", "use --bf16"),
        (FitConfig, {"output_dir": ""}, "--output-dir", "nothing", "name one"),
        (FitConfig, {"output_dir": "s3://o"}, "--output-dir", "s3://o", "on this machine"),
        (FitConfig, {"data_path": "s3://d"}, "--data-path", "s3://d", "copy it to this machine"),
        (FitConfig, {"lora_alpha": 8}, "--lora-alpha", "8", "give --lora-r 16 too"),
        (FitConfig, {"lora_r": 4, "output_dir": "m"}, "--output-dir", "m", "another folder"),
        (FitConfig, {"report_to": "paper"}, "--report-to", "paper", "give none"),
        (FitConfig, {"fsdp": "fully"}, "--fsdp", "fully", "full_shard"),
        (FitConfig, {"eval_data_path": "folder"}, "--eval-data-path", "folder", "NAME=FOLDER"),
        (FitConfig, {"eval_data_path": "a b=c"}, "--eval-data-path", "a b=c", "NAME=FOLDER"),
        (FitConfig, {"eval_data_path": ("a=b", "a=c")}, "--eval-data-path", "a=c", "of its own"),
        (PrepareConfig, {"model_max_length": 63}, "--model-max-length", "63", "64 or more"),
        (PrepareConfig, {"eval_fraction": 1.0}, "--eval-fraction", "1.0", "less than 1"),
        (PrepareConfig, {"data_path": ()}, "--data-path", "nothing", "name one"),
        (PrepareConfig, {"ray_address": "auto"}, "--ray-address", "auto", "--engine ray"),
        (PrepareConfig, {"max_target_length": 9999}, "--max-target-length", "9999", "no more"),
        (TrainConfig, {"eval_fraction": -0.1}, "--eval-fraction", "-0.1", "less than 1"),
        (TrainConfig, {"warmup_ratio": 1.5}, "--warmup-ratio", "1.5", "0 to 1"),
        (TrainConfig, {"max_target_length": 9999}, "--max-target-length", "9999", "no more"),
        (TrainConfig, {"lora_alpha": 8}, "--lora-alpha", "8", "give --lora-r 16 too"),
        (ChatConfig, {"model": "m", "top_p": 0.0}, "--top-p", "0.0", "more than 0"),
        (ExportConfig, {"model": "", "output_dir": "o"}, "--model", "nothing", "name one"),
    ],
)
def test_the_first_value_out_of_its_bounds_is_named(
    kind: Any, values: dict[str, Any], where: str, got: str, do: str
) -> None:
    needed = {FitConfig: FIT, TrainConfig: FIT, PrepareConfig: PREPARE}.get(kind, {})
    with pytest.raises(ConfigError) as caught:
        kind(**needed | values)
    assert caught.value.where == where
    assert got in caught.value.got
    assert do in caught.value.do


def test_the_defaults_are_in_their_bounds_and_paths_become_text() -> None:
    config = TrainConfig(**FIT | {"data_path": Path("d"), "output_dir": Path("o")})
    assert (config.data_path, config.output_dir) == (("d",), "o")
    fit = config.fit_config(Path("prepared"))
    assert (fit.data_path, fit.sharding, fit.lora) == (("prepared",), None, None)
    assert PrepareConfig(**PREPARE) == dataclasses.replace(
        config.prepare_config(), output_dir=PrepareConfig.output_dir
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", None),
        ("False", None),
        ("full_shard auto_wrap", Sharding(layers=("T5Block",), reshard=True)),
        ("auto_wrap,shard_grad_op", Sharding(layers=("T5Block",), reshard=False)),
        ("True", Sharding(layers=("T5Block",), reshard=True)),
    ],
)
def test_the_trainers_words_of_fsdp(words: str, wanted: Sharding | None) -> None:
    assert FitConfig(**FIT, fsdp=words, fsdp_transformer_layer_cls_to_wrap="T5Block").sharding == (
        wanted
    )
