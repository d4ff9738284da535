"""Files of settings: read with the flags' meaning, written so that they run again."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline import cli
from pipeline.commands.run_file import read_run_files
from pipeline.config import FitConfig, PrepareConfig, TrainConfig
from pipeline.config.run_file import json_schema, run_file_of
from pipeline.errors import ConfigError, DuetError
from pipeline.fit.schedule import plan_run
from pipeline.recipes import recipe_names, recipe_path
from tests.conftest import SAMPLE

REQUIRED = {"data_path": ("d",), "model_name_or_path": "m", "output_dir": "o"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that commands were called with, which do nothing else."""
    found: list[Any] = []
    for name, (config_class, _, text) in cli.COMMANDS.items():
        monkeypatch.setitem(cli.COMMANDS, name, (config_class, found.append, text))
    return found


@pytest.fixture
def run_yaml(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(
    seen: list[Any], run_yaml: Callable[[str], str]
) -> None:
    path = run_yaml(
        "data-path: [a, b]\nmodel_name_or_path: m\noutput-dir: o\nlearning-rate: 5e-4\n"
        "eval_strategy: no\nbf16: yes\nseed: 7\ngroup-by-length: false\nsave-total-limit: null\n"
    )
    assert cli.run(["fit", "--config", path, "--seed", "8", "--data-path", "c"]) == 0
    assert seen == [
        FitConfig(
            data_path=("c",),
            model_name_or_path="m",
            output_dir="o",
            learning_rate=5e-4,
            eval_strategy="no",
            bf16=True,
            seed=8,
            group_by_length=False,
        )
    ]
    assert cli.run(["chat", "--config", run_yaml("model: out\ntop-k: 3")]) == 0
    assert (seen[1].model, seen[1].top_k) == ("out", 3)


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("seed: 1\n\nlearning-rat: 1", 3, ["learning-rat;", "got: 1", "learning-rate"]),
        ("frobnicate: 1", 1, ["frobnicate", "delete it", "duet fit --help"]),
        ("seed: fast", 1, ["seed", "got: fast", "a whole number"]),
        ("seed: 1.5", 1, ["seed", "got: 1.5", "a whole number"]),
        ("seed: [1]", 1, ["got: a list", "a whole number"]),
        ("bf16: 2", 1, ["bf16", "true or false"]),
        ("learning-rate: {a: 1}", 1, ["keys inside of it", "a number"]),
        ("optim: adam", 1, ["optim", "got: adam", "adafactor"]),
        ("data-path:\n- a\n- [b]", 1, ["data-path", "a list of texts"]),
        ("data-path:\n- a\n- null", 1, ["data-path", "got: null"]),
        ("seed: 1\nseed: 2", 2, ["twice", "also on line 1"]),
        ("learning_rate: 1\nlearning-rate: 2", 2, ["twice"]),
        ("deepspeed: ds.json", 1, ["deepspeed", "--fsdp"]),
        ("a: 'b", 1, ["not YAML"]),
        ("- a", 1, ["a list", "KEY: VALUE"]),
        ("text", 1, ["text", "KEY: VALUE"]),
        ("[" * 5000, 0, ["too deep"]),
        # Of what is out of range, the line, too; but not of a flag that won.
        ("learning-rate: -1", 1, ["--learning-rate, ", "more than 0"]),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_with_its_place(
    text: str,
    line: int,
    parts: list[str],
    run_yaml: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = run_yaml(text)
    flags = ["--data-path", "d", "--model-name-or-path", "m", "--output-dir", "o"]
    assert cli.run(["fit", "--config", path, *flags]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    for part in [path + (f", line {line}" if line else ""), "; got: ", "; do: ", *parts]:
        assert part in error
    assert cli.run(["fit", "--config", path, *flags, "--learning-rate", "-2"]) == 1
    assert "--learning-rate, " not in capsys.readouterr().err


def test_a_file_that_is_not_there_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fit", "--config", "nowhere.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(name in line for name in ("nowhere.yaml", *recipe_names()))


def test_keys_of_the_hugging_face_trainer_are_read_as_its_flags_are(
    run_yaml: Callable[[str], str],
) -> None:
    path = run_yaml("evaluation_strategy: epoch\ndataloader_num_workers: 4\neval_fraction: 0.1\n")
    found = read_run_files([path], "fit", FitConfig)
    assert found.values == {"eval_strategy": "epoch"}
    assert "dataloader_num_workers" in found.notes[0]
    assert "eval_fraction" in found.notes[1]
    with pytest.raises(ConfigError, match="evaluation_strategy") as caught:
        read_run_files([path], "inspect", cli.COMMANDS["inspect"][0])
    assert "unknown key" in str(caught.value)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_what_is_written_is_read_back(
    command: str, tmp_path: Path, seen: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every command: the file runs it with the same settings, and fits its schema."""
    config_class = cli.COMMANDS[command][0]
    path = tmp_path / "run.yaml"
    assert cli.run([command, "--write-config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    text = path.read_text(encoding="utf-8")
    for f in dataclasses.fields(config_class):
        written = "\n" + f.name.replace("_", "-") + ": " in text
        assert written != f.metadata["secret"], f.name
    assert seen == []
    assert cli.run([command, "--write-config", str(path)]) == 1  # it is there
    required = {
        f.name: ("ls" if f.name == "action" else "x 1")
        for f in dataclasses.fields(config_class)
        if f.default is dataclasses.MISSING
    }
    config = config_class(**required)
    path.write_text(run_file_of(command, config), encoding="utf-8")
    assert cli.run([command, "--config", str(path)]) == 0
    assert seen == [config]
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.validate(content, json_schema(command, config_class))


def test_values_of_every_kind_are_read_back(tmp_path: Path) -> None:
    config = TrainConfig(
        data_path=("a: b", "# c", "no", "1", "ü\n", "null"),
        model_name_or_path="~",
        output_dir="'o'",
        role=("x=human",),
        learning_rate=3e-7,
        warmup_steps=0.25,
        eval_strategy="no",
        save_total_limit=3,
        tf32=False,
        lr_scheduler_kwargs='{"min_lr_rate": 0.1}',
        num_processes="auto",
        push_to_hub=True,
        hub_token="secret",
    )
    path = tmp_path / "config.yaml"
    path.write_text(run_file_of("train", config), encoding="utf-8")
    assert "secret" not in path.read_text(encoding="utf-8")
    values = read_run_files([str(path)], "train", TrainConfig).values
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    assert TrainConfig(**values, hub_token="secret") == config


def test_a_schema_refuses_what_the_settings_refuse() -> None:
    schema = json_schema("fit", FitConfig)
    for wrong in ({"learning-rate": 0}, {"optim": "adam"}, {"seed": 1 << 32}, {"no-such-key": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_right_to_the_last_key(
    name: str, seen: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each key is one of train's, both stages take it, and it runs with no more than data."""
    path = recipe_path(name)
    assert path is not None
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.validate(content, json_schema("train", TrainConfig))
    for command, given in (("train", name), ("fit", str(path)), ("prepare", name + ".yaml")):
        assert cli.run([command, "--config", given, "--data-path", "d"]) == 0
    train, fit, prepare = seen
    for key, value in content.items():
        assert getattr(train, key.replace("-", "_")) == (
            str(value) if key == "num-processes" else value
        )
    assert (fit.learning_rate, prepare.eval_fraction) == (train.learning_rate, train.eval_fraction)
    assert name in capsys.readouterr().err  # keys of the other stage
    processes = int(train.num_processes)
    plan = plan_run(
        train.fit_config(Path("d")).steps, num_rows=50_000, eval_rows=500, processes=processes
    )
    assert plan.evaluation == plan.saving  # so that the best one is a checkpoint
    assert plan.global_batch_size == train.train_batch_size


def test_of_two_files_the_later_counts(seen: list[Any], run_yaml: Callable[[str], str]) -> None:
    mine = run_yaml("learning-rate: 1e-3\ndata-path: d\noutput-dir: o")
    assert cli.run(["train", "--config", "flan-t5-base", "--config", mine]) == 0
    assert (seen[0].learning_rate, seen[0].output_dir, seen[0].bf16) == (1e-3, "o", True)


def test_prepare_leaves_its_settings_and_runs_from_them(
    tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-name-or-path", str(tiny_t5), "--output-dir", str(tmp_path / "processed")]
    assert cli.run(["prepare", "--data-path", str(SAMPLE), *flags, "--model-max-length", "99"]) == 0
    folder = capsys.readouterr().out.strip()
    assert cli.run(["prepare", "--config", f"{folder}/config.yaml"]) == 0
    assert capsys.readouterr().out.strip() == folder
    config = yaml.safe_load(Path(folder, "config.yaml").read_text(encoding="utf-8"))
    assert (config["model-max-length"], config["data-path"]) == (99, [str(SAMPLE)])


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["prepare", "--config-schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema("prepare", PrepareConfig)
    jsonschema.Draft202012Validator.check_schema(schema)


def test_write_config_checks_what_is_whole(tmp_path: Path) -> None:
    given = ["fit", "--config", "flan-t5-base", "--data-path", "d"]
    path = tmp_path / "run.yaml"
    assert cli.run([*given, "--seed", "-1", "--write-config", str(path)]) == 1
    assert not path.exists()


def test_a_broken_setting_of_a_recipe_names_the_recipe() -> None:
    file = read_run_files(["flan-t5-base"], "train", TrainConfig)
    error = file.located(DuetError("x", where="--learning-rate", got=0, do="y"), [])
    assert "flan-t5-base, line " in error.where
