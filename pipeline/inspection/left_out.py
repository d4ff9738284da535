"""What was read, and what was left out and why: of the manifest and of the rejected records."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.console.terminal import visible
from pipeline.errors import InputError
from pipeline.store.manifest import Manifest
from pipeline.store.rejected import FILENAME, rejected_records, rejection_kinds
from pipeline.store.summary import MEANINGS

_LONGEST_REJECTION = 300  # characters


def read_as(manifest: Manifest) -> Iterator[Text]:
    """Yield what each file was read as, and which keys are not used."""
    yield Text()
    yield Text("--- what was read", "bold")
    for source in manifest.sources:
        others = source.get("forms", {})
        as_turns = source["records"] - source["rejected"] - sum(others.values())
        forms = {"lists of turns": as_turns, **others}
        shown = ", ".join(f"{n:,} as {form}" for form, n in forms.items() if n) or "nothing"
        line = f"{source['name']} ({source['format']}): {shown}; {source['rejected']:,} rejected"
        yield Text(visible(line))
    for kind, keys in manifest.unused_keys.items():
        if keys:
            names = ", ".join(f"{name} {n:,}" for name, n in sorted(keys.items(), key=_by_count))
            yield Text(visible(f"other keys of {kind}, not used: {names}"))
    joined = manifest.counts["joined"]
    yield Text(f"records joined to the conversation before them: {joined:,}")


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def rejections(folder: Path, limit: int) -> Iterator[Text]:
    """Yield the commonest kinds of rejected records, one of each.

    Raises:
        PreparedFolderError: The list of them is damaged.
    """
    kinds = rejection_kinds(folder)
    if kinds and limit:
        yield Text()
        title = f"--- the most common rejections, one of each; all are in {folder / FILENAME}"
        yield Text(visible(title), "bold")
    for kind in kinds[:limit]:
        yield _line(f"{kind.count:,} × {kind.reason}: {kind.detail}; ", kind.example)


def dropped_records(folder: Path, reason: str, limit: int | None) -> Iterator[dict[str, Any]]:
    """Yield the rejected records of a reason, in order, at most so many.

    Raises:
        PreparedFolderError: The list of them is damaged.
    """
    yield from islice((r for r in rejected_records(folder) if r["reason"] == reason), limit)


def dropped_lines(records: Iterable[dict[str, Any]]) -> Iterator[Text]:
    """Yield a line for each rejected record."""
    for found in records:
        yield _line(f"{found['detail']}; ", found)


def _line(what: str, found: dict[str, Any]) -> Text:
    record = found.get("record", found.get("text"))
    text = json.dumps(record, ensure_ascii=False) if record is not None else "no text"
    line = Text(visible(what), "yellow")
    place = f"{found['file']} record {found['position']}: "
    cut = " …" if len(text) > _LONGEST_REJECTION else ""
    return line.append(visible(place + text[:_LONGEST_REJECTION] + cut), "none")


def check_reason(manifest: Manifest, reason: str) -> int:
    """Return how often something was left out or cut for a reason.

    Raises:
        InputError: Never, in this folder.
    """
    reasons: dict[str, int] = manifest.counts["reasons"]
    if reason not in reasons:
        raise InputError(
            "nothing was left out for this reason",
            where="--dropped",
            got=reason,
            do="give one of " + ", ".join(sorted(reasons)) if reasons else "leave it out",
        )
    return reasons[reason]


def reason_line(reason: str, count: int) -> Text:
    """Return what a reason means, and how often it was met."""
    return Text(f"--- {reason}, {count:,}: {MEANINGS.get(reason, '')}".rstrip(": "), "bold")


NOT_KEPT = "Counted only: what was left out for this reason is not in the prepared folder."
