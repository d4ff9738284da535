"""The pages of ``docs/``: commands, flags and errors are all there, and links lead somewhere."""

import dataclasses
import functools
import inspect
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import pipeline
from pipeline import errors
from pipeline.cli import COMMANDS, run
from pipeline.commands.flags import COMMON, flags_of, modernise
from pipeline.commands.trainer_flags import ALIASES, IGNORED, REFUSED
from pipeline.config.fields import flag
from tests.conftest import ROOT, undocumented

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
READ_BY_USERS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(path for path in PAGES if path.name != "log.md"),
]
"""All but the log, which speaks of what was there at the time."""
OF_SCRIPTS = {"--tiny", "--requeue"}
"""Flags of other programs that the pages name."""


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> str:
    """Return what stands in blocks of code, indented or fenced."""
    fenced = re.findall(
        r"^ *```(?:console|text|bash)?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL
    )
    return "\n".join([*fenced, *re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)])


def commands(text: str) -> list[list[str]]:
    """Return every ``duet …`` and ``-m pipeline… …`` command of a page, split into words."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", blocks(text)).splitlines():
        if match := re.search(r"(?:(?:^|[\s(])duet|-m pipeline)(\.train)? ([a-z-]+.*)", line):
            part = match[2].removesuffix(")") if "$(duet" in line else match[2]
            words = shlex.split(part.replace("…", ""), comments=True)
            found.append(["train", *words] if match[1] else words)
    return found


EXAMPLES = [
    (names(path), words)
    for path in READ_BY_USERS
    for words in commands(path.read_text(encoding="utf-8"))
    if not words[0].startswith("--")
]


@pytest.mark.parametrize(
    ("page", "words"), EXAMPLES, ids=[f"{p}: {' '.join(w)}" for p, w in EXAMPLES]
)
def test_a_command_in_a_page_is_understood(page: str, words: list[str]) -> None:
    command, *args = words
    modernise(args, COMMANDS[command][0])


def test_the_commands_of_the_page_for_one_gpu_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their values too, and the recipe that it tells of."""
    seen: dict[str, Any] = {}
    for name, (config_class, _, text) in COMMANDS.items():
        entry = (config_class, functools.partial(seen.__setitem__, name), text)
        monkeypatch.setitem(COMMANDS, name, entry)
    found = [words for page, words in EXAMPLES if page == "docs/howto/one-gpu.md"]
    given = ["--data-path", "x", "--model-name-or-path", "m", "--output-dir", "o"]
    for words in found:
        words = [word for word in words if word]  # "" was "…"
        assert run([*words, *(given if "--dry-run" in words else [])]) == 0, words
    assert seen.keys() == {"prepare", "fit", "train", "report"}
    train = seen["train"]  # "64 examples a step, 1e-4, cosine", evaluated "every tenth of the run"
    assert (train.train_batch_size, train.learning_rate) == (64, 1e-4)
    assert (train.lr_scheduler_type, train.eval_steps) == ("cosine", 0.1)


def test_the_pages_use_every_command() -> None:
    assert {words[0] for _, words in EXAMPLES} == set(COMMANDS)


def test_flags_in_the_pages_exist() -> None:
    known = set().union(*(flags_of(config_class) for config_class, _, _ in COMMANDS.values()))
    known |= COMMON.keys()
    theirs = ALIASES.keys() | IGNORED.keys() | REFUSED.keys()
    for path in (path for path in READ_BY_USERS if path.parent.name != "benchmarks"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`(--[a-z][\w-]+)", text):
            assert name.replace("_", "-") in known | theirs | OF_SCRIPTS, f"{names(path)}: {name}"


def test_every_command_and_flag_is_in_the_reference() -> None:
    page = TEXTS["docs/reference/commands.md"]
    for command, (config_class, _, _) in COMMANDS.items():
        assert f"\n## `duet {command}`\n" in page
        for f in dataclasses.fields(config_class):
            name = f.name.upper() if f.metadata["positional"] else flag(f.name)
            assert f"| `{name}` |" in page, f"{command} {name}"


def test_every_error_is_in_the_reference() -> None:
    page = TEXTS["docs/reference/errors.md"]
    classes = [
        c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)
    ]
    assert len(classes) > 8
    for error in classes:
        assert f"autoexception:: pipeline.errors.{error.__name__}\n" in page, error.__name__


def test_every_file_of_a_prepared_folder_is_in_the_reference() -> None:
    """Those of a run: ``tests/fit/checkpoint/test_verification.py``."""
    golden = ROOT / "tests" / "golden" / "prepared"
    files = [names(path) for path in golden.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not undocumented(files)
    assert undocumented(["train/other.arrow"]) == {"other.arrow"}


def test_every_public_name_is_in_the_reference() -> None:
    page = TEXTS["docs/reference/python.md"]
    for name in pipeline.__all__:
        assert re.search(rf"(auto\w+:: pipeline[\w.]*\.|pipeline\.){name}\b", page), name


def test_links_lead_somewhere() -> None:
    """Of files in the repository; a site that is not ours is only looked at for its form."""
    for path in [*READ_BY_USERS, DOCS / "log.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if "://" in target:
                url = urlsplit(target)
                assert url.scheme == "https" and "." in url.netloc, f"{names(path)}: {target}"
                continue
            file, _, anchor = target.partition("#")
            there = path.parent / file if file else path
            assert there.exists(), f"{names(path)}: {target}"
            if anchor:
                assert anchor in anchors(there), f"{names(path)}: {target}"


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_leads_to_every_page_for_users() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in ("howto", "reference"):
        for path in (DOCS / page).glob("*.md"):
            assert f"({names(path)})" in readme, path


def test_llms_txt_lists_every_page() -> None:
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[.+\]\((.+\.md)\): .+", text, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)
