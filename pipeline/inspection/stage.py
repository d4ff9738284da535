"""``duet inspect``: the parts of a description, or the pairs alone as JSON Lines."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from pipeline.config import InspectConfig
from pipeline.console.terminal import show, visible, visible_json
from pipeline.inspection.fidelity import compare, data_of, fidelity_lines
from pipeline.inspection.left_out import (
    NOT_KEPT,
    check_reason,
    dropped_lines,
    dropped_records,
    read_as,
    reason_line,
    rejections,
)
from pipeline.inspection.pairs import CUTS, Pair, PairReader
from pipeline.inspection.styled import pair_lines
from pipeline.store.manifest import Manifest, read_manifest
from pipeline.store.summary import summary
from pipeline.tokenizer import TextTokenizer, load_tokenizer


def inspect(config: InspectConfig) -> None:
    """Print what is asked for; on a terminal in colour, a page at a time.

    Raises:
        PreparedFolderError: The folder is missing, incomplete or damaged.
        InputError: What was asked for is not in it.
    """
    if config.jsonl:
        for line in json_lines(config):
            print(line)
    else:
        # All of it first: a folder that is damaged gives its one line and nothing else.
        show(list(description(config)))


def description(config: InspectConfig) -> Iterator[Text]:
    """Yield the lines of a description."""
    folder = Path(config.prepared)
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    if config.dropped is not None:
        yield from _dropped(folder, manifest, tokenizer, config)
        return
    is_search = config.conversation is not None or config.grep is not None
    if not is_search:
        yield Text(visible(summary(manifest, folder)))
    reader = PairReader(folder, manifest, config.split, tokenizer)
    yield from _pairs(reader, tokenizer, config)
    if is_search:
        return
    if (data := data_of(folder, config.data_path)) and config.fidelity:
        rows = range(min(config.fidelity, reader.table.num_rows))
        yield from fidelity_lines(compare(map(reader.read, rows), data, manifest.config))
    yield from read_as(manifest)
    yield from rejections(folder, config.rejected)


def _pairs(reader: PairReader, tokenizer: TextTokenizer, config: InspectConfig) -> Iterator[Text]:
    found = False
    for pair in reader.chosen(config):
        found = True
        yield from pair_lines(pair, tokenizer, tokens=config.tokens, grep=config.grep)
    if not found and (config.grep is not None or config.dropped is not None):
        yield Text(f"no pair of the split {config.split} is like that")


def _dropped(
    folder: Path, manifest: Manifest, tokenizer: TextTokenizer, config: InspectConfig
) -> Iterator[Text]:
    reason = str(config.dropped)
    yield reason_line(reason, check_reason(manifest, reason))
    if reason in CUTS:
        reader = PairReader(folder, manifest, config.split, tokenizer)
        yield from _pairs(reader, tokenizer, config)
    else:
        records = list(dropped_records(folder, reason, config.rows))
        yield from dropped_lines(records) if records else [Text(NOT_KEPT)]


def json_lines(config: InspectConfig) -> Iterator[str]:
    """Yield the pairs that are asked for, or rejected records, as one JSON object a line."""
    folder = Path(config.prepared)
    manifest = read_manifest(folder)
    if config.dropped is not None and config.dropped not in CUTS:
        check_reason(manifest, config.dropped)
        for found in dropped_records(folder, config.dropped, config.rows):
            yield visible_json(json.dumps(found, ensure_ascii=False))
        return
    if config.dropped is not None:
        check_reason(manifest, config.dropped)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    for pair in PairReader(folder, manifest, config.split, tokenizer).chosen(config):
        yield visible_json(json.dumps(_fields(pair, config, tokenizer), ensure_ascii=False))


def _fields(pair: Pair, config: InspectConfig, tokenizer: TextTokenizer) -> dict[str, object]:
    fields: dict[str, object] = {
        "split": pair.split,
        "row": pair.row,
        "conversation_id": pair.conversation_id,
        "turn": pair.turn,
        "encoder": pair.encoder,
        "decoder": pair.decoder,
        "encoder_tokens": len(pair.source),
        "decoder_tokens": len(pair.target),
        "cuts": list(pair.cuts),
        "turns_cut": pair.turns_cut,
    }
    if config.tokens:
        for name, ids in (("encoder_pieces", pair.source), ("decoder_pieces", pair.target)):
            fields[name] = [tokenizer.backend.id_to_token(i) for i in ids]
    return fields
