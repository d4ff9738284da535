"""Words that are gone: each thing has one name, the field's own (``CONTRIBUTING.md``, "Words")."""

import ast
import re
from collections.abc import Iterator

from tests.conftest import ROOT

GONE = {
    r"means? nothing": "is ignored",
    r"(goes|go|gone|going) on (with|without|from)|run goes on": "resume, continue",
    r"sittings?": "session",
    r"in shares|at rest": "sharded",
    r"[Tt]ell whether": "Return whether",
    r"course of the (rate|learning)|the rate's course": "learning-rate schedule",
    r"mend(s|ed)?": "fix",
    r"culprits?": "nonfinite",
    r"(to|can|cannot) be had": "supported, available",
    r"rows (per|of a) step": "global batch size",
    r"split eval": "eval split",
    r"tall(y|ies)": "DatasetStats",
    r"passages?": "segment",
    r"tr(y|ies|ying) out": "memory probe",
    r"dealt? out": "balance",
    r"steps were held": "training paused",
    r"begun": "started",
    r"passed over": "skipped",
    r"to the letter": "exactly",
    r"not as it was written": "changed after it was written",
    r"(keys?|number)s? (of \w+ )?that nobody reads": "not used",
    r"maximum-length examples?": "the longest examples",
    r"should stand after": "what comes after",
    r"the loss at each step": "the logged losses",
    r"images, audio or the like": "not text alone",
    r"up to, but not including": "less than",
    r"bound(ed)? by the (lower|upper)|from the lower bound": "from the least",
    r"Before that: ": "Earlier turns",
    r"judge it": "evaluate it",
    r"values too deep": "nested too deeply",
    r"a search draws": "does not sample",
    r"weights of four bits": "4-bit weights",
}
"""What stands in no message, help text, docstring or page, and what stands there instead."""
GONE_NAMES = (
    *("Setup", "set_up", "Saver", "Snapshot", "Tally", "Known", "Feeder", "StepFeed", "StepPlan"),
    *("Cutter", "StopRequest", "is_odd", "is_regular", "own_token_ids", "culprits", "try_out"),
    *("settle_buckets", "rows_per_step", "cutter", "deal", "dealt", "price"),
)
"""Names in code that those of the field took the place of."""
ON_DISK = ("rows per step", "passed over")
"""Keys of files that earlier versions wrote, too."""

SOURCES = sorted((ROOT / "pipeline").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_PATTERN = re.compile("|".join(rf"\b(?:{word})\b" for word in GONE))


def found_in(text: str) -> Iterator[str]:
    """Yield each word that is gone, with what is around it and what to say instead."""
    for match in _PATTERN.finditer(" ".join(text.split())):
        instead = next(new for old, new in GONE.items() if re.fullmatch(old, match[0]))
        around = match.string[max(match.start() - 40, 0) : match.end() + 40]
        yield f"…{around}…: say {instead}"


def test_the_pages_have_no_word_that_is_gone() -> None:
    """But for the log and the changelog, which speak of what was there at the time."""
    history = ("log.md", "changelog.md", "contributing.md")
    pages = [page for page in PAGES if page.name not in history and "_build" not in page.parts]
    assert len(pages) > 20
    for page in pages:
        assert not [*found_in(page.read_text(encoding="utf-8"))], page


def test_the_code_has_no_word_and_no_name_that_is_gone() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and value not in ON_DISK:
                assert not [*found_in(value)], path
            for field in ("id", "attr", "name", "arg"):
                assert getattr(node, field, None) not in GONE_NAMES, (
                    f"{path}: {ast.dump(node)[:99]}"
                )


def test_a_word_that_is_gone_is_found() -> None:
    assert [*found_in("a run that goes on\nwith others")] == [
        "…a run that goes on with others…: say resume, continue"
    ]
