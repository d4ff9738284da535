"""How many answers come back exactly: the labels decoded, against the text in the data.

A row holds no text, so the data are read again: where ``--data-path`` says, or where the settings
beside the rows say that they were.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.config.run_file import FILENAME
from pipeline.console.progress import Wait, advance
from pipeline.console.terminal import visible
from pipeline.conversation import Conversation, Role
from pipeline.inspection.pairs import Pair
from pipeline.prepare.files.json_values import Fault
from pipeline.prepare.files.reading import find_files, read_files
from pipeline.prepare.read.joining import join_parts
from pipeline.prepare.read.records import RecordCounts, parse_record, roles_with
from pipeline.prepare.read.values import RejectedError

_EXAMPLES = 5
_AROUND = 20
"""Characters shown before and after the first that differs."""


@dataclass(slots=True)
class Fidelity:
    """What came of the comparison."""

    equal: int = 0
    different: list[tuple[Pair, str]] = field(default_factory=list)
    """Pairs that do not decode to the text, which is beside each."""
    cut: int = 0
    """Answers that were cut, and are not compared."""
    missing: int = 0
    """Answers that are not in the data as they are now."""


def data_of(folder: Path, given: Sequence[str]) -> list[str]:
    """Return where the data of a prepared folder are, as far as is known; empty: it is not."""
    if given:
        return list(given)
    path = folder / FILENAME
    if not path.is_file():
        return []
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        paths = [*settings["eval-data-path"], *settings["data-path"]]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []  # someone else's file
    return paths if all(Path(path).exists() for path in paths) else []


def compare(pairs: Iterable[Pair], data: Sequence[str], options: Mapping[str, Any]) -> Fidelity:
    """Compare answers with the data.

    Args:
        pairs: The rows.
        data: Files, folders or globs.
        options: The ``config`` of the manifest.

    Raises:
        InputError: The data cannot be read.
    """
    found, wanted = Fidelity(), dict[tuple[str, int], Pair]()
    for pair in pairs:
        if "answer_cut" in pair.cuts:
            found.cut += 1
        else:
            wanted[pair.conversation_id, pair.turn] = pair
    with Wait("comparing answers with the data", len(wanted), "answers"):
        for conversation_id, i, text in _answers(data, options):
            if (pair_here := wanted.pop((conversation_id, i), None)) is None:
                continue
            advance(1)
            if pair_here.decoder == text:
                found.equal += 1
            else:
                found.different.append((pair_here, text))
            if not wanted:
                break
    found.missing = len(wanted)
    return found


def _answers(data: Sequence[str], options: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield conversation, turn and text of each answer in the data."""
    for conversation in _conversations(data, options):
        for i, turn in enumerate(conversation.turns):
            if turn.role is Role.ASSISTANT:
                yield conversation.id, i, turn.text


def _conversations(data: Sequence[str], options: Mapping[str, Any]) -> Iterator[Conversation]:
    records = _records(data, options)
    yield from join_parts(records) if options.get("join_parts", True) else records


def _records(data: Sequence[str], options: Mapping[str, Any]) -> Iterator[Conversation]:
    roles, clean_html = roles_with(options.get("role") or {}), bool(options.get("clean_html"))
    for _, record in read_files(find_files(data)):
        if isinstance(record, Fault):
            continue
        try:
            yield parse_record(record.value, roles, RecordCounts(), clean_html=clean_html)
        except RejectedError:
            continue


def fidelity_lines(found: Fidelity) -> Iterator[Text]:
    """Yield what came of it, and some examples."""
    compared = found.equal + len(found.different)
    yield Text()
    share = f" ({100 * found.equal / compared:.1f} %)" if compared else ""
    yield Text(
        f"--- {found.equal:,} of {compared:,} answers{share} decode to the text in the data, "
        "exactly",
        "bold",
    )
    if found.cut:
        yield Text(f"{found.cut:,} more were cut, and not compared")
    if found.missing:
        yield Text(f"{found.missing:,} more are not in the data as they are now", "bold red")
    for pair, text in found.different[:_EXAMPLES]:
        yield _difference(pair, text)


def _difference(pair: Pair, text: str) -> Text:
    """Return the place where an answer and its text part ways."""
    decoded = pair.decoder
    at = next(
        (i for i, (a, b) in enumerate(zip(decoded, text, strict=False)) if a != b),
        min(len(decoded), len(text)),
    )
    start = max(at - _AROUND, 0)
    before, after = (repr(part[start : at + _AROUND]) for part in (text, decoded))
    line = Text(visible(f"conversation {pair.conversation_id}, turn {pair.turn}: "))
    return line.append(visible(before), "green").append(" became ").append(visible(after), "red")
