"""The way of the settings through ``fit``: short, whatever holds them."""

from dataclasses import dataclass
from pathlib import Path

import pipeline
from pipeline.config import FitConfig
from pipeline.fit.stage import fit
from scripts.config_trace import trace
from tests.fit.helpers import changed

PACKAGE = Path(pipeline.__file__).parent
MOST_STOPS = 40


@dataclass
class _Settings:
    value: int = 1


@dataclass
class _Holder:
    settings: _Settings

    def value(self) -> int:
        return self.settings.value


def test_what_is_counted() -> None:
    here = Path(__file__).parent

    def direct(settings: _Settings) -> int:
        return _Holder(settings).value()

    def values(value: int) -> int:
        return value

    found = trace(lambda: direct(_Settings()), _Settings, here)
    assert found.stops == [f"{Path(__file__).name}:test_what_is_counted.<locals>.direct"]
    assert trace(lambda: _Holder(_Settings()).value(), _Settings, here).entered == 1
    assert trace(lambda: values(_Settings().value), _Settings, here).stops == []


def test_the_settings_make_few_stops(config: FitConfig) -> None:
    run = changed(config, max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="epoch")
    found = trace(lambda: fit(run), FitConfig, PACKAGE)
    assert "fit/training/build.py:build_trainer" in found.stops
    assert len(found.stops) <= MOST_STOPS, "\n".join(found.stops)
