"""What a Chromium makes of the pages: nothing is asked for, nothing runs, all of it can be read."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.config import ReportConfig
from pipeline.report.stage import report
from tests.report.test_pages import GOLDEN, HOSTILE
from tests.report.test_runs import ENTRIES, write_log

pytest.importorskip("matplotlib", reason="pip install 'duet-t5[report]'")

_TEXTS = """() => [...document.querySelectorAll("svg text, p, th, td, dt, dd, summary, .said")]
    .filter(e => e.getClientRects().length)
    .map(e => {
        const style = getComputedStyle(e);
        let ground = e;
        while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)")
            ground = ground.parentElement;
        return [e instanceof SVGElement ? style.fill : style.color,
                getComputedStyle(ground).backgroundColor];
    })"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(GOLDEN / "prepared", folder / "data")
    for name in ("a", "b"):
        run = write_log(
            folder / name, [{**entry, f"eval_{HOSTILE}_loss": 3.0} for entry in ENTRIES]
        )
        sample = {"step": 4, "question": HOSTILE, "answer": HOSTILE * 9}
        (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    runs = (str(folder / "a"), str(folder / "b"))
    return [
        report(ReportConfig(folders=folders))
        for folders in ((str(folder / "data"),), runs, runs[:1])
    ]


@pytest.fixture
def tab(browser: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page of the browser, and what it asks for or complains of."""
    page, events = browser.contexts[0].pages[0], list[str]()
    handlers = {
        "console": lambda message: events.append(message.text),
        "request": lambda request: events.append(request.url),
        "dialog": lambda dialog: events.append("a dialog"),
    }
    for name, handler in handlers.items():
        page.on(name, handler)
    yield page, events
    for name, handler in handlers.items():
        page.remove_listener(name, handler)
    page.goto("about:blank")


def test_a_page_asks_for_nothing_fits_and_can_be_read(
    tab: tuple[Any, list[str]], pages: list[Path]
) -> None:
    page, events = tab
    session = page.context.new_cdp_session(page)
    try:
        for path, (scheme, width) in itertools.product(
            pages, itertools.product(("light", "dark"), (1200, 390))
        ):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            session.send("Emulation.setEmulatedMedia", {"features": [feature]})
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            session.send("Emulation.setDeviceMetricsOverride", size)
            events.clear()
            page.goto(path.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
            assert events == [path.as_uri()]
            assert page.title().startswith(("Prepared folder", "Run a", "2 runs"))
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (_luminance(ground) > 0.5) == (scheme == "light")
            found = page.evaluate(_TEXTS)
            assert len(found) > 50
            faint = {pair for pair in map(tuple, found) if _contrast(*pair) < 4.5}
            assert not faint, faint
    finally:
        session.send("Emulation.clearDeviceMetricsOverride")
        session.send("Emulation.setEmulatedMedia", {"features": []})


def _luminance(color: str) -> float:
    """Return the relative luminance of ``rgb(…)``, as WCAG 2 has it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)
