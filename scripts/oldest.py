"""Prints the oldest versions that ``pyproject.toml`` allows, as constraints for pip.

    python scripts/oldest.py > oldest.txt

``just test-oldest`` runs the tests with them. torch is left out: its old builds are on the package
index for CUDA alone, so the tests run with the build that is at hand.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NOT_PINNED = {"torch"}
EXTRAS = ("ctranslate2", "eval", "html", "lora", "report", "serve")
"""Those whose packages the tests use, but for what follows the versions of others."""


def main() -> None:
    print("\n".join(oldest()))


def oldest() -> list[str]:
    """Return ``NAME==VERSION`` for each direct dependency, of the package and of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in EXTRAS for text in extras[name])]
    return sorted({_pinned(Requirement(text)) for text in texts} - {""})


def _pinned(requirement: Requirement) -> str:
    (bound,) = requirement.specifier
    assert bound.operator == ">=", requirement
    pinned = f"{requirement.name}=={bound.version}"
    return "" if requirement.name in NOT_PINNED else pinned


if __name__ == "__main__":
    main()
