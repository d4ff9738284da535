"""Fixtures that all tests share: a tiny T5, the real vocabulary, and a clean environment."""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pipeline.tokenizer import TextTokenizer, load_tokenizer
from scripts.tiny_t5 import make_tiny_t5, read_texts
from tests.browser import browser as browser  # a fixture
from tests.hub_server import serve_hub as serve_hub  # a fixture

# The models are too small to share out: threads would only wait for each other. Before torch is
# imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# huggingface_hub reads this when it is imported, and would try a hub for 20 seconds.
os.environ["HF_HUB_OFFLINE"] = "1"
# All that is written waits for the disk, on one a fifth of the time: the tests' own folders are in
# memory, where that can be had as a folder.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "raw" / "sample.json"
REAL_TOKENIZER = Path(
    os.environ.get("FLAN_T5_TOKENIZER", ROOT.parent / "shared" / "flan-t5-tokenizer")
)
"""The real vocabulary, where a copy is at hand: a folder with tokenizer.json and spiece.model."""

# Where a test does not say how many: hypothesis's 100, and more with --hypothesis-profile=thorough.
settings.register_profile("thorough", max_examples=300)

# Collecting imports half a million objects that stay: to look through them again and again for
# garbage takes a third of the collection's time, and a part of each test's.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "TORCHELASTIC_")) or name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of Flan-T5's shape with a small vocabulary and random weights."""
    return make_tiny_t5(tmp_path_factory.mktemp("tiny") / "tiny-t5", read_texts(SAMPLE))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_t5: Path) -> TextTokenizer:
    """The lossless tokenizer of the tiny T5's vocabulary."""
    return load_tokenizer(str(tiny_t5))


@pytest.fixture(scope="session")
def real_tokenizer() -> TextTokenizer:
    """The lossless tokenizer of the real T5 vocabulary."""
    if not REAL_TOKENIZER.is_dir():
        pytest.skip(f"the real T5 vocabulary is not at {REAL_TOKENIZER}; set FLAN_T5_TOKENIZER")
    return load_tokenizer(str(REAL_TOKENIZER))


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Return a function that writes a value as a JSON file below the test's folder."""

    def write(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return write


def record(record_id: str | None, *texts: str, roles: Iterable[str] = ("human", "gpt")) -> Any:
    """Return a ShareGPT record whose turns alternate between ``roles``."""
    names = list(roles)
    turns = [{"from": names[i % len(names)], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns} | ({"id": record_id} if record_id is not None else {})


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, which must end well."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def undocumented(files: Iterable[str]) -> set[str]:
    """Return those of some files' names that ``docs/reference/files.md`` does not have."""
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    documented = {re.sub(r"\d+", "N", name) for name in re.findall(r"`([^`]+)`", page)}
    names = {re.sub(r"\d+", "N", Path(file).name) for file in files}
    return names - {name.rpartition("/")[2] for name in documented}
