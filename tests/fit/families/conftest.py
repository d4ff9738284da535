"""A model and a prepared folder of each family, made when they are first asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.config import FitConfig
from pipeline.fit.stage import fit
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from tests.fit.families.models import FAMILIES, make_family
from tests.fit.helpers import Pair, make_rows, write_prepared


@dataclass(frozen=True)
class Family:
    """A small model of a family, and rows of its own tokenizer."""

    name: str
    model: Path
    data: Path
    tokenizer: TextTokenizer
    rows: list[Pair]

    @property
    def tied(self) -> bool:
        """Whether the output matrix is one that ids are looked up in."""
        return FAMILIES[self.name][2]

    def run(self, output: Path, **changes: object) -> FitConfig:
        """Return a run of two steps of four rows."""
        settings: dict[str, object] = {
            "data_path": str(self.data), "model_name_or_path": str(self.model),
            "output_dir": str(output), "max_steps": 2, "per_device_train_batch_size": 4,
            "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no",
            "eval_strategy": "no",
        }  # fmt: skip
        return FitConfig(**settings | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Return a function that gives a family by its name, the same each time."""
    made: dict[str, Family] = {}

    def family(name: str) -> Family:
        if name not in made:
            folder = tmp_path_factory.mktemp("families")
            model = make_family(name, folder / name)
            tokenizer = load_tokenizer(str(model))
            rows = make_rows(tokenizer, 12, 0)
            data = write_prepared(folder / "data", tokenizer, {"train": rows})
            made[name] = Family(name, model, data, tokenizer, rows)
        return made[name]

    return family


VARIANTS = {
    "t5-untied",
    "flan-t5",
    "flan-t5-tied",
    "ul2",
    "longt5-local",
    "switch-untied",
    "bart-untied",
}
"""Of another that is there, or of the other tests' Flan-T5: in what is tied, or in one layer."""


@pytest.fixture(
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n in VARIANTS)) for n in FAMILIES]
)
def family(request: pytest.FixtureRequest, make: Callable[[str], Family]) -> Family:
    """Each family in turn; its variants are slow tests."""
    return make(request.param)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Return a function that gives a family's model after two steps, the same each time."""
    made: dict[str, Path] = {}

    def train(family: Family) -> Path:
        if family.name not in made:
            made[family.name] = fit(family.run(tmp_path_factory.mktemp("trained") / family.name))
        return made[family.name]

    return train
