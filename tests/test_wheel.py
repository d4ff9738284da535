"""The wheel, built from what git tracks, in an environment of its own: as uvx and pipx have it."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from pipeline.recipes import recipe_names
from scripts.oldest import oldest
from tests.conftest import ROOT, SAMPLE

DATA_FILES = {
    "pipeline/py.typed",
    "pipeline/generation/server/page.html",
    "pipeline/report/page.css",
    "pipeline/report/page.html.jinja",
    *(f"pipeline/recipes/{name}.yaml" for name in recipe_names()),
}


def tracked() -> list[str]:
    """Return the files that git tracks, and those that it would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_every_file_that_is_no_module_is_packed() -> None:
    others = {
        name
        for name in tracked()
        if name.startswith("pipeline/") and not name.endswith((".py", ".pyc"))
    }
    assert others == DATA_FILES
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = set()
    for pattern in project["tool"]["setuptools"]["package-data"]["pipeline"]:
        packed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").glob(pattern)}
    assert packed == DATA_FILES


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    for name in tracked():
        if name.startswith("pipeline/") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(target), str(source)], check=True)
    (path,) = target.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    info = {name for name in names if ".dist-info/" in name}
    assert any(name.endswith("licenses/LICENSE") for name in info)
    expected = {n for n in tracked() if n.startswith("pipeline/") and n.endswith(".py")}
    assert names - info == expected | DATA_FILES


@pytest.mark.slow
def test_the_wheel_runs_in_an_environment_of_its_own(
    wheel: Path, tiny_t5: Path, tmp_path: Path
) -> None:
    """Its dependencies are those of this environment: nothing is downloaded."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    purelib = sysconfig.get_path("purelib", vars={"base": str(home)})
    # Only this: an editable installation that is there is none in the new one.
    (Path(purelib) / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [str(home / "bin" / "pip"), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)

    def duet(*args: str) -> str:
        command = [str(home / "bin" / "duet"), *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    code = "import pipeline; print(pipeline.__file__)"
    python = [str(home / "bin" / "python"), "-c", code]
    where = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(home))
    assert duet("--version").startswith("duet ")
    prepared = duet("prepare", "--data-path", str(SAMPLE), "--model-name-or-path", str(tiny_t5))
    assert (tmp_path / prepared / "manifest.json").is_file()
    out = duet("train", "--config", "flan-t5-base", "--write-config", "run.yaml")
    assert (tmp_path / out).is_file()
    page = duet("report", prepared)
    assert "<style" in (tmp_path / page).read_text(encoding="utf-8")


def test_each_direct_dependency_has_an_oldest_and_a_tried_version() -> None:
    tried = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    for text in oldest():
        name, version = text.split("==")
        assert Version(version) <= Version(tried[name]), text
