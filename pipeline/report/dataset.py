"""A prepared folder -> the sections of its page."""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.report.chat import sample_chats
from pipeline.report.histogram import length_picture
from pipeline.report.page import (
    Block,
    Chats,
    Examples,
    Facts,
    Section,
    Table,
    TableBlock,
    shorten,
)
from pipeline.report.plans import padding_picture, window_section
from pipeline.report.rows import read_lengths
from pipeline.report.svg import StyleSheet
from pipeline.report.windows import Cuts
from pipeline.store.manifest import Manifest
from pipeline.store.rejected import FILENAME, rejection_kinds
from pipeline.store.summary import MEANINGS
from pipeline.units import file_size, percent

_MOST_KINDS = 20  # of rejections
_MOST_LOST = 60  # characters
_LONGEST_EXAMPLE = 2_000


def dataset_sections(
    folder: Path, manifest: Manifest, pairs: int, sheet: StyleSheet
) -> Iterator[Section]:
    """Yield the sections of a prepared folder.

    Args:
        folder: Where it is.
        manifest: Its own.
        pairs: How many to show.
        sheet: Takes the styles of the pictures.

    Raises:
        PreparedFolderError, TokenizerError: The folder is damaged.
    """
    lengths = read_lengths(folder, manifest, manifest.splits())
    yield Section(id="overview", title="Overview", blocks=[_facts(manifest)])
    train = read_lengths(folder, manifest, manifest.splits()[:1])
    yield Section(
        id="lengths",
        title="Lengths and padding",
        blocks=[
            length_picture(lengths, sheet),
            padding_picture(train, sheet),
            _percentiles(manifest),
        ]
        if len(train)
        else [],
    )
    if len(lengths):
        yield window_section(lengths, Cuts.of(manifest), sheet)
    yield Section(id="left-out", title="Left out and cut", blocks=_left_out(folder, manifest))
    yield Section(id="lost", title="Lost characters", blocks=list(_lost(manifest)))
    yield Section(
        id="pairs",
        title="Pairs",
        text="What the model reads, as turns, and the answer that it learns to give. Line ends and "
        "spaces are those that the ids decode to.",
        blocks=[
            Chats(chats=sample_chats(folder, manifest, split, pairs))
            for split in manifest.splits()[:1]
            if pairs and manifest.rows(split)
        ],
    )
    yield Section(id="sources", title="Sources and settings", blocks=list(_sources(manifest)))


def _facts(manifest: Manifest) -> Facts:
    counts, tokens = manifest.counts, manifest.tokens
    total = max(tokens["input_ids"] + tokens["labels"], 1)
    unknown = tokens["unknown"]
    splits = ", ".join(f"{manifest.rows(split):,} in {split}" for split in manifest.splits())
    joined = f"{counts['joined']:,} joined to the one before"
    return Facts(
        facts=[
            ("records", f"{counts['records']:,}", joined),
            ("rejected", f"{counts['rejected']:,}", percent(_of(counts, "rejected", "records"))),
            ("conversations", f"{counts['conversations']:,}", "joined, without repeats"),
            ("pairs", f"{counts['pairs']:,}", splits),
            ("encoder tokens", f"{tokens['input_ids']:,}", "of histories and questions"),
            ("decoder tokens", f"{tokens['labels']:,}", "of the answers, what the loss is of"),
            ("window", f"{manifest.config['model_max_length']:,}", "tokens, --model-max-length"),
            ("unknown tokens", f"{100 * unknown / total:.3f} %", f"{unknown:,} of both sides"),
        ]
    )


def _of(counts: dict[str, Any], part: str, whole: str) -> float:
    return float(counts[part] / max(counts[whole], 1))


def _percentiles(manifest: Manifest) -> TableBlock:
    spread = manifest.tokens["lengths"]
    names = list(spread["input_ids"])
    return TableBlock(
        title="Tokens of a row",
        text="p90: 90 % of the rows have no more. Lengths count </s>.",
        table=Table(
            header=["", *names],
            rows=[
                [side, *(f"{spread[column][name]:,}" for name in names)]
                for side, column in (("encoder", "input_ids"), ("decoder", "labels"))
            ],
        ),
    )


def _left_out(folder: Path, manifest: Manifest) -> list[Block]:
    reasons = sorted(manifest.counts["reasons"].items(), key=lambda item: (-item[1], item[0]))
    blocks: list[Block] = []
    if reasons:
        table = Table(
            header=["reason", "count", "what it means"],
            rows=[[name, f"{count:,}", MEANINGS.get(name, "")] for name, count in reasons],
            words=[2],
        )
        blocks.append(TableBlock(title="By reason", table=table))
    kinds = rejection_kinds(folder)
    if kinds:
        shown = kinds[:_MOST_KINDS]
        more = f" The commonest {_MOST_KINDS} of {len(kinds):,}." if len(kinds) > len(shown) else ""
        blocks.append(
            Examples(
                title="Rejected records, one of each kind",
                text=f"All of them are in {FILENAME}.{more}",
                examples=[
                    (
                        f"{kind.count:,} × {kind.reason}: {kind.detail}",
                        f"{kind.example['file']}, record {kind.example['position']}",
                        _rejected_text(kind.example),
                    )
                    for kind in shown
                ],
            )
        )
    return blocks


def _rejected_text(example: dict[str, Any]) -> str:
    what = example.get("record", example.get("text"))
    if what is None:
        return "no text"
    text = what if isinstance(what, str) else json.dumps(what, indent=1, ensure_ascii=False)
    return shorten(text, _LONGEST_EXAMPLE)


def _lost(manifest: Manifest) -> Iterator[Block]:
    lost, affected = manifest.tokens["lost"], manifest.tokens["answers_with_unknown"]
    if not lost:
        return
    total = sum(count for _, count in lost)
    yield TableBlock(
        title=f"{total:,} characters of {affected:,} answers",
        text="The vocabulary does not have them: the model reads and learns <unk> instead. "
        f"{len(lost):,} different ones"
        + (f"; the commonest {_MOST_LOST}." if len(lost) > _MOST_LOST else "."),
        table=Table(
            header=["character", "times", "code point", "name"],
            rows=[[text, f"{count:,}", *_character(text)] for text, count in lost[:_MOST_LOST]],
            words=[2, 3],
        ),
    )


def _character(text: str) -> tuple[str, str]:
    points = " ".join(f"U+{ord(c):04X}" for c in text)
    return points, ", ".join(unicodedata.name(c, "no name").lower() for c in text)


def _sources(manifest: Manifest) -> Iterator[Block]:
    forms = sorted({form for source in manifest.sources for form in source.get("forms", {})})
    rows = []
    for source in manifest.sources:
        others = source.get("forms", {})
        turns = source["records"] - source["rejected"] - sum(others.values())
        numbers = (source["records"], source["rejected"], turns, *(others.get(f, 0) for f in forms))
        size = file_size(source["bytes"])
        rows.append([source["name"], source["format"], size, *(f"{n:,}" for n in numbers)])
    yield TableBlock(
        title="What was read",
        text=f"{manifest.files_passed_over:,} other files were passed over."
        if manifest.files_passed_over
        else "",
        table=Table(
            header=["file", "format", "size", "records", "rejected", "as lists of turns", *forms],
            rows=rows,
            words=[1],
        ),
    )
    unused = [
        (f"{name} ({kind})", count)
        for kind, keys in manifest.unused_keys.items()
        for name, count in keys.items()
    ]
    if unused:
        unused.sort(key=lambda item: (-item[1], item[0]))
        yield TableBlock(
            title="Keys that nobody reads",
            table=Table(
                header=["key", "times"], rows=[[name, f"{count:,}"] for name, count in unused]
            ),
        )
    settings = {**manifest.config, "fingerprint": manifest.fingerprint, **manifest.versions}
    yield TableBlock(
        title="Settings and versions",
        table=Table(
            header=["name", "value"],
            rows=[[name, str(value)] for name, value in settings.items()],
            words=[1],
        ),
        is_open=False,
    )
