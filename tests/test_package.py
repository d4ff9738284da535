"""The package as a whole: public names, light imports, no error of a lower layer."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
import pipeline.prepare
import pipeline.store

CALLABLE = ("fit", "prepare")


def test_every_public_name_is_there() -> None:
    assert list(pipeline.__all__) == sorted(pipeline.__all__)
    for name in pipeline.__all__:
        assert callable(getattr(pipeline, name)), name
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError):
        _ = pipeline.nothing  # type: ignore[attr-defined]


def test_the_stages_are_called_by_their_name_whatever_was_imported_before() -> None:
    code = (
        "import pipeline.prepare.read.records, pipeline; assert callable(pipeline.prepare); "
        "from pipeline import prepare, fit; assert callable(prepare) and callable(fit)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, pipeline; heavy = {'torch', 'transformers', 'numpy', 'pyarrow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_preparing_works_where_torch_cannot_be_imported() -> None:
    modules = [
        module.name
        for package in (pipeline.prepare, pipeline.store)
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    ]
    assert len(modules) > 10
    code = f"""
import importlib, sys
for name in ("torch", "transformers", "accelerate"):
    sys.modules[name] = None  # importing it now fails
for name in {modules!r}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_module_has_a_docstring() -> None:
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if module.name != "pipeline.__main__":
            assert importlib.import_module(module.name).__doc__, module.name


def test_only_one_file_reads_what_the_launcher_says_of_a_process() -> None:
    source = Path(pipeline.__file__).parent
    names = re.compile(r"(environ|getenv).*(RANK|WORLD_SIZE)")
    readers = [path.name for path in source.rglob("*.py") if names.search(path.read_text("utf-8"))]
    assert readers == ["world.py"]


def test_no_folder_of_fit_has_more_than_twelve_entries() -> None:
    root = Path(pipeline.__file__).parent / "fit"
    folders = {path.parent for path in root.rglob("*.py")}
    entries = {
        folder.relative_to(root).as_posix(): sum(p.name != "__pycache__" for p in folder.iterdir())
        for folder in folders
    }
    assert max(entries.values()) <= 12, entries
