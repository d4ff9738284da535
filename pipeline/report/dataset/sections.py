"""A prepared folder -> the sections of its page."""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console.units import file_size, percent
from pipeline.report.chat import sample_chats
from pipeline.report.dataset.histogram import length_picture
from pipeline.report.dataset.plans import padding_picture, window_section
from pipeline.report.dataset.rows import Lengths, read_lengths
from pipeline.report.dataset.windows import Cuts
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
from pipeline.report.svg import StyleSheet
from pipeline.store.manifest import Manifest
from pipeline.store.rejected import FILENAME, rejection_kinds
from pipeline.store.summary import MEANINGS

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
    train = read_lengths(folder, manifest, manifest.splits()[:1])
    yield Section(id="overview", title="Overview", blocks=[_facts(manifest, lengths)])
    if len(lengths):
        blocks: list[Block] = [length_picture(lengths, sheet), _percentiles(lengths)]
        if len(train):
            blocks.insert(1, padding_picture(train, sheet))
        yield Section(id="lengths", title="Lengths and padding", blocks=blocks)
        yield window_section(lengths, Cuts.of(manifest, lengths), sheet)
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


def _facts(manifest: Manifest, lengths: Lengths) -> Facts:
    """Return the numbers at the top; those that a manifest made by others lacks are left out."""
    counts, unknown = manifest.counts, manifest.tokens.get("unknown")
    encoder, decoder = int(lengths.encoder.sum()), int(lengths.decoder.sum())
    rejected = counts.get("rejected", 0) / max(counts.get("records", 0), 1)
    remarks = {
        "records": f"{counts.get('joined', 0):,} joined to the part before them",
        "rejected": percent(rejected),
        "conversations": "joined, without repeats",
    }
    facts = [(name, f"{counts[name]:,}", text) for name, text in remarks.items() if name in counts]
    splits = ", ".join(f"{manifest.rows(split):,} in {split}" for split in manifest.splits())
    facts += [
        ("pairs", f"{len(lengths):,}", splits),
        ("encoder tokens", f"{encoder:,}", "of histories and questions"),
        ("decoder tokens", f"{decoder:,}", "of the answers, which are learned"),
    ]
    if "model_max_length" in manifest.config:
        window = f"{manifest.config['model_max_length']:,}"
        facts.append(("window", window, "tokens, --model-max-length"))
    if unknown is not None:
        share = f"{100 * unknown / max(encoder + decoder, 1):.3f} %"
        facts.append(("unknown tokens", share, f"{unknown:,} of both sides"))
    return Facts(facts=facts)


def _percentiles(lengths: Lengths) -> TableBlock:
    ranks = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    sides = {
        side: np.percentile(values, list(ranks.values()), method="inverted_cdf")
        for side, values in (("encoder", lengths.encoder), ("decoder", lengths.decoder))
    }
    return TableBlock(
        title="Tokens of a row",
        text="p90: 90 % of the rows are no longer than that. Lengths include </s>.",
        table=Table(
            header=["", *ranks],
            rows=[[side, *(f"{n:,}" for n in found)] for side, found in sides.items()],
        ),
    )


def _left_out(folder: Path, manifest: Manifest) -> list[Block]:
    counts: dict[str, int] = manifest.counts.get("reasons", {})
    reasons = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
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
    lost = manifest.tokens.get("lost")
    if not lost:
        return
    affected = manifest.tokens["answers_with_unknown"]
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
    if manifest.sources:
        yield _files(manifest)
    unused = [
        (f"{name} ({kind})", count)
        for kind, keys in manifest.unused_keys.items()
        for name, count in keys.items()
    ]
    if unused:
        unused.sort(key=lambda item: (-item[1], item[0]))
        yield TableBlock(
            title="Other keys, not used",
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


def _files(manifest: Manifest) -> TableBlock:
    forms = sorted({form for source in manifest.sources for form in source.get("forms", {})})
    rows = []
    for source in manifest.sources:
        others = source.get("forms", {})
        turns = source["records"] - source["rejected"] - sum(others.values())
        numbers = (source["records"], source["rejected"], turns, *(others.get(f, 0) for f in forms))
        size = file_size(source["bytes"])
        rows.append([source["name"], source["format"], size, *(f"{n:,}" for n in numbers)])
    return TableBlock(
        title="What was read",
        text=f"{manifest.files_passed_over:,} other files were skipped."
        if manifest.files_passed_over
        else "",
        table=Table(
            header=["file", "format", "size", "records", "rejected", "as lists of turns", *forms],
            rows=rows,
            words=[1],
        ),
    )
