"""Flags: the golden list, and old ways of writing them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import COMMANDS, run
from pipeline.commands.app import run_app
from pipeline.commands.flags import UsageError, flags_of, modernise, read_values
from pipeline.commands.trainer_flags import ALIASES, IGNORED, REFUSED
from pipeline.config import FitConfig, PrepareConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.generation.config import ChatConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "flags.txt"


def test_the_flags_are_those_of_the_golden_list() -> None:
    """Scripts rely on these names: who adds, renames or drops one edits the list, too."""
    lines = []
    for command, (config_class, _, _) in COMMANDS.items():
        for f in dataclasses.fields(config_class):
            required = f.default is dataclasses.MISSING
            default = "required" if required else repr(f.default)
            name = f.name.upper() if f.metadata["positional"] else "--" + f.name.replace("_", "-")
            lines.append(f"{command} {name} {default}")
    assert "\n".join(lines) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_every_field_has_a_help() -> None:
    for config_class, _, _ in COMMANDS.values():
        for f in dataclasses.fields(config_class):
            assert f.metadata["help"].endswith("."), f.name


@pytest.mark.parametrize(
    "args",
    [
        ["prepare", "--data-path", "a", "--data-path", "b", "--model-name-or-path", "m"],
        ["prepare", "--data-path", "a", "--model-name-or-path", "m", "--eval-fraction", "1e-2"],
        [
            "prepare",
            "--data-path",
            "a",
            "--model-name-or-path",
            "m",
            "--no-dedup",
            "--max-target-length",
            "7",
        ],
        ["prepare", "--data-path", "a", "--model-name-or-path=m", "--num_workers", "-1"],
        ["prepare", "--data-path", "a"],
        ["prepare", "--data-path", "a", "--model-name-or-path", "m", "--train-turns", "some"],
        ["prepare", "--data-path", "a", "--model-name-or-path", "m", "b"],
        ["inspect", "--rows", "+3", "p", "--longest", "--no-longest", "--tokens", "True"],
        ["inspect", "p", "--rows", "3.5"],
        ["inspect", "p", "q"],
        ["inspect", "p", "-x"],
        ["inspect", "--", "p"],
        ["report", "p", "--output-path=--x", "q"],
        ["report", "p", "q", "r"],
        ["report"],
        ["fit", "--data-path", "p=0.5", "--lora-r", "8", "--learning-rate", "1_0", "--bf16", "off"],
    ],
)
def test_what_is_read_without_typer_is_what_typer_reads(args: list[str]) -> None:
    config_class = COMMANDS[args[0]][0]
    from_file = {"output_dir": "from a file", "learning_rate": 3.0}
    from_file = {k: v for k, v in from_file.items() if k in config_class.__dataclass_fields__}
    plain = modernise(args[1:], config_class).args
    taken: list[Any] = []
    commands = COMMANDS | {args[0]: (config_class, taken.append, "")}
    try:
        run_app(commands, [args[0], *plain], from_file)
    except (UsageError, ConfigError) as error:
        taken = [str(error)]
    values = read_values(plain, config_class, from_file)
    if values is None:
        assert isinstance(taken[0], str) or args == ["inspect", "--", "p"]
    else:
        try:
            assert [config_class(**values)] == taken
        except ConfigError as error:
            assert taken == [str(error)]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_names_each_flag(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the width of the terminal, and without the words of its libraries for types."""
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert all(name in text for name in flags_of(COMMANDS[command][0]))
        widest = max(map(len, text.splitlines()))
        assert columns - 40 < widest <= columns
        assert "default: no-" not in text
        assert not re.search(r"^ +--.*<(str|list)\b", text, re.MULTILINE)


def test_a_number_that_is_none_is_said_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "x", "--rows", "two"]) == 2
    line = "usage: Invalid value for '--rows': give a valid integer; see duet inspect --help"
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--bf16", "True"], ["--bf16"]),
        (["--bf16", "false"], ["--no-bf16"]),
        (["--bf16=False"], ["--no-bf16"]),
        (["--bf16"], ["--bf16"]),
        (["--bf16", "--tf32", "True"], ["--bf16", "--tf32"]),
        (["--no-bf16", "False"], ["--bf16"]),
        (["--no_bf16"], ["--no-bf16"]),
        (["--data_path", "a_b"], ["--data-path", "a_b"]),
        (["--data_path=a_b=c"], ["--data-path", "a_b=c"]),
        (["--num_data", "-1"], ["--num-data", "-1"]),
        (["--fsdp", "full_shard auto_wrap"], ["--fsdp", "full_shard auto_wrap"]),
        (["--evaluation_strategy", "no"], ["--eval-strategy", "no"]),
        (["--weight_decay", "0."], ["--weight-decay", "0."]),
    ],
)
def test_old_ways_of_writing_are_read(args: list[str], expected: list[str]) -> None:
    assert modernise(args, TrainConfig).args == expected


def test_an_ignored_flag_is_accepted_with_one_line() -> None:
    args = ["--ddp_find_unused_parameters", "False", "--overwrite_output_dir", "--seed", "1"]
    for config_class in (TrainConfig, FitConfig):
        found = modernise(args, config_class)
        assert found.args == ["--seed", "1"]
        assert [note.partition(" is ignored: ")[0] for note in found.notes] == [
            args[0].replace("_", "-"),
            args[2].replace("_", "-"),
        ]
    with pytest.raises(UsageError):
        modernise(args, PrepareConfig)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("--learning-rat", "--learning-rate"),
        ("--model_max_len", "--model-max-length"),
        ("--train-epochs", "--num-train-epochs"),
        ("--epochs", "--num-train-epochs"),
        ("--batch-size", "--train-batch-size"),
        ("--grad-accum", "--gradient-accumulation-steps"),
        ("--data", "--data-path"),
        ("--report-too", "--report-to"),
    ],
)
def test_an_unknown_flag_names_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"the nearest one is {nearest}$"):
        modernise([given, "8"], TrainConfig)


@pytest.mark.parametrize("rest", [[], ["True"], ["--seed", "1"]])
def test_an_unknown_switch_names_a_switch(rest: list[str]) -> None:
    with pytest.raises(UsageError, match=r"the nearest one is --auto-batch-size$"):
        modernise(["--auto_batch", *rest], FitConfig)


@pytest.mark.parametrize(
    "given",
    ["--frobnicate", "--verbose", "--num-gpus", "--temperature", "--shuffle", "--config-name"],
)
def test_a_flag_that_resembles_none_names_none(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        modernise([given, "8"], FitConfig)
    assert str(caught.value) == f"unknown flag {given}"


def test_every_flag_of_the_hugging_face_trainer_has_a_place() -> None:
    """Ours, ignored with a reason, or refused with a text of its own: each in one place."""
    from transformers import Seq2SeqTrainingArguments

    ours = set(flags_of(FitConfig))
    theirs = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert theirs <= ours | ALIASES.keys() | IGNORED.keys() | REFUSED.keys()
    for table in (ALIASES, IGNORED, REFUSED):
        assert not ours & table.keys()
    assert not IGNORED.keys() & REFUSED.keys()
    assert not ALIASES.keys() & (IGNORED.keys() | REFUSED.keys())
    assert set(ALIASES.values()) <= ours


def test_texts_name_flags_that_exist() -> None:
    """What a text tells someone to use must be there to be used."""
    known = set().union(*(flags_of(config_class) for config_class, _, _ in COMMANDS.values()))
    for text in [*IGNORED.values(), *(refusal.text for refusal in REFUSED.values())]:
        assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) <= known, text


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--resume_from_checkpoint", "out/checkpoint-5"], "resumes from the newest checkpoint"),
        (["--deepspeed", "ds.json"], "--fsdp"),
        (["--neftune-noise-alpha", "5"], "noise"),
        (["--predict_with_generate"], "losses"),
        (["--predict_with_generate", "--seed", "1"], "losses"),
        (["--auto-find-batch-size=True"], "--auto-batch-size"),
    ],
)
def test_a_flag_that_would_change_the_run_is_refused_with_its_own_text(
    args: list[str], text: str
) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        modernise(args, FitConfig)
    assert "nearest" not in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        ["--resume_from_checkpoint", "True"],
        ["--predict_with_generate", "False"],
        ["--no-predict-with-generate"],
        ["--deepspeed", "None"],
        ["--torch-compile-backend=inductor"],
        ["--no_remove_unused_columns"],
    ],
)
def test_a_value_that_changes_nothing_is_accepted(args: list[str]) -> None:
    found = modernise([*args, "--seed", "1"], FitConfig)
    assert found.args == ["--seed", "1"]
    assert len(found.notes) == 1


PATHS: dict[str, Any] = {"data_path": "d", "model_name_or_path": "m"}


@pytest.mark.parametrize(
    ("config_class", "name", "value"),
    [
        (PrepareConfig, "model_max_length", 63),
        (PrepareConfig, "max_target_length", 0),
        (PrepareConfig, "max_target_length", 2049),
        (PrepareConfig, "eval_fraction", 1.0),
        (PrepareConfig, "eval_fraction", -0.1),
        (PrepareConfig, "num_workers", 0),
        (PrepareConfig, "role", ("x",)),
        (PrepareConfig, "role", ("x=alien",)),
        (PrepareConfig, "data_path", ()),
        (FitConfig, "fp16", True),
        (FitConfig, "per_device_train_batch_size", 0),
        (FitConfig, "learning_rate", 0.0),
        (FitConfig, "max_steps", 0),
        (FitConfig, "warmup_ratio", 1.5),
        (FitConfig, "report_to", "wandb,paper"),
        (FitConfig, "num_data", 0),
        (FitConfig, "num_train_epochs", float("inf")),
        (FitConfig, "save_steps", float("inf")),
        (FitConfig, "learning_rate", float("nan")),
        (FitConfig, "seed", 1 << 32),
        (FitConfig, "output_dir", ""),
    ],
)
def test_a_setting_that_cannot_be_is_one_clear_error(
    config_class: type[Any], name: str, value: Any
) -> None:
    paths = PATHS | ({"output_dir": "o"} if config_class is FitConfig else {})
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        config_class(**paths | {name: value})


def test_train_splits_into_the_settings_of_both_stages() -> None:
    config = TrainConfig(**PATHS, output_dir="o", prepared_dir="p", seed=7, model_max_length=100)
    assert config.prepare_config() == PrepareConfig(**PATHS, output_dir="p", model_max_length=100)
    assert config.fit_config(Path("x")) == FitConfig(
        data_path="x", model_name_or_path="m", output_dir="o", seed=7
    )


def test_paths_may_be_paths_and_a_path_one() -> None:
    config = PrepareConfig(data_path=Path("d"), model_name_or_path=Path("m"))  # type: ignore[arg-type]
    assert config.data_path == ("d",)
    assert config.model_name_or_path == "m"
    several: Any = [Path("d"), "e"]
    assert PrepareConfig(data_path=several, model_name_or_path="m").data_path == ("d", "e")
    fit: Any = FitConfig(data_path=Path("d"), model_name_or_path="m", output_dir=Path("o"))  # type: ignore[arg-type]
    assert (fit.data_path, fit.output_dir) == (("d",), "o")


def test_chat_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="--top-p"):
        ChatConfig(model="m", top_p=0.0)
