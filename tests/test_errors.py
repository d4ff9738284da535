"""No error of a lower layer reaches a user: whatever is broken, one line and exit code 1.

Each case breaks one thing that pyarrow, json, safetensors, sentencepiece, tokenizers or the file
system would complain of in its own words, and runs the command line on it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.errors
from pipeline.cli import run
from pipeline.errors import ConfigError, DuetError, require_package
from tests.conftest import SAMPLE

GOLDEN = Path(__file__).parent / "golden"

Break = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change bytes in the middle, not the size."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(data)


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00garbage")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.fixture
def folders(tiny_t5: Path, tmp_path: Path) -> Path:
    """A folder with a model, a prepared folder and data, each whole."""
    shutil.copytree(tiny_t5, tmp_path / "model")
    shutil.copytree(GOLDEN / "prepared", tmp_path / "prepared")
    shutil.copy(SAMPLE, tmp_path / "data.json")
    return tmp_path


def args_of(command: str, folders: Path) -> list[str]:
    model, prepared = str(folders / "model"), str(folders / "prepared")
    return {
        "prepare": ["prepare", "--data-path", str(folders / "data.json"), "--model-name-or-path",
                    model, "--output-dir", str(folders / "out")],
        "inspect": ["inspect", prepared],
        "fit": ["fit", "--data-path", prepared, "--model-name-or-path", str(GOLDEN / "model"),
                "--from-scratch", "--output-dir", str(folders / "out"), "--max-steps", "1"],
        "fit model": ["fit", "--data-path", prepared, "--model-name-or-path", model,
                      "--output-dir", str(folders / "out"), "--max-steps", "1"],
        "chat": ["chat", model, "--message", "hi", "--max-new-tokens", "2"],
    }[command]  # fmt: skip


CASES: list[tuple[str, str, Break]] = [
    ("prepare", "data.json", garbage),
    ("prepare", "data.json", a_folder),
    ("prepare", "model/spiece.model", cut),
    ("prepare", "model/spiece.model", garbage),
    ("prepare", "model/spiece.model", Path.unlink),
    ("prepare", "model/config.json", garbage),
    ("inspect", "prepared/manifest.json", garbage),
    ("inspect", "prepared/manifest.json", cut),
    ("inspect", "prepared/manifest.json", lambda path: path.write_text("[]")),
    ("inspect", "prepared/manifest.json", lambda path: path.write_text("{}")),
    ("inspect", "prepared/manifest.json", lambda path: path.write_text('{"schema_version": 99}')),
    ("inspect", "prepared/train/shard-00000.arrow", cut),
    ("inspect", "prepared/train/shard-00000.arrow", a_folder),
    ("inspect", "prepared/rejected.jsonl", garbage),
    ("inspect", "prepared/tokenizer/tokenizer.json", garbage),
    ("fit", "prepared/manifest.json", garbage),
    ("fit", "prepared/train/shard-00000.arrow", cut),
    ("fit", "prepared/train/shard-00000.arrow", Path.unlink),
    ("fit", "prepared/tokenizer/tokenizer.json", garbage),
    ("fit model", "model/config.json", garbage),
    ("fit model", "model/config.json", Path.unlink),
    ("fit model", "model/model.safetensors", cut),
    ("fit model", "model/model.safetensors", garbage),
    ("fit model", "model/model.safetensors", Path.unlink),
    ("chat", "model/model.safetensors", cut),
    ("chat", "model/model.safetensors", garbage),
    ("chat", "model/config.json", garbage),
    ("chat", "model/spiece.model", garbage),
]


@pytest.mark.parametrize(("command", "name", "sabotage"), CASES)
def test_what_is_broken_is_one_line(
    folders: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    sabotage: Break,
) -> None:
    sabotage(folders / name)
    assert run(args_of(command, folders)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [text for text in err.splitlines() if not text.startswith("note: ")]
    assert line.startswith("error: ")
    assert all(part in line for part in ("; where: ", "; got: ", "; do: "))
    assert len(line) < 600, "a lower layer's whole speech"


@pytest.mark.parametrize("command", ["prepare", "fit"])
def test_an_output_folder_that_is_a_file_is_one_line(
    folders: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (folders / "out").write_text("")
    assert run(args_of(command, folders)) == 1
    _, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("error: cannot write")]


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    for name, value in vars(pipeline.errors).items():
        if isinstance(value, type) and issubclass(value, DuetError):
            assert name in (pipeline.errors.__doc__ or "")


def test_packages_that_are_missing_are_one_line() -> None:
    require_package("json", where="--here", install="json")
    with pytest.raises(ConfigError) as caught:
        require_package("json", "no_a", "no_b", where="--x", install="them", otherwise="leave it")
    assert str(caught.value) == (
        "error: a package is not installed; where: --x; got: no no_a and no no_b; "
        "do: pip install them, or leave it"
    )
