"""What is said after a preparation, one line each: what a user should know and could not guess."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.console.units import counted
from pipeline.prepare.read.forms import nearest_form
from pipeline.prepare.read.remedies import REMEDIES
from pipeline.store.manifest import Manifest
from pipeline.store.rejected import RejectionKind, rejection_kinds

_ENDS = ("cut_off", "broken_parquet", "broken_arrow")
"""Reasons for which the rest of a file is not read."""
_MUCH_REJECTED = 0.1
_MUCH_UNKNOWN = 0.01
_LOST = {
    "lost_newlines": "line ends",
    "lost_spaces": "runs of spaces or tabs",
    "lost_characters": "characters",
}
_KEEPS = "T5 and its like, mT5 and umT5 with a few spare embedding rows, BART and T5Gemma"
_FAR_OFF = 0.5  # of the share that was asked for, above it or below


def remarks(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Yield what is worth a line.

    Args:
        manifest: Of a prepared folder.
        folder: The folder.
    """
    for source in manifest.sources:
        for form, count in source.get("forms", {}).items():
            yield f"{source['name']}: {count:,} of {source['records']:,} records read as {form}"
    yield from _incomplete(manifest, folder)
    yield from _rejected(manifest, folder)
    yield from _unknown(manifest)
    yield from _lost(manifest)
    yield from _refused(manifest)
    yield from _splits(manifest)


def _incomplete(manifest: Manifest, folder: Path) -> Iterator[str]:
    if manifest.counts["reasons"].keys().isdisjoint(_ENDS):
        return
    for kind in rejection_kinds(folder):
        if kind.reason in _ENDS:
            more = f" and {counted(kind.count - 1, 'more file')}" if kind.count > 1 else ""
            yield (
                f"{kind.example['file']}{more}: {kind.detail} ({kind.reason}); what comes after "
                "that is not in the data"
            )


def _rejected(manifest: Manifest, folder: Path) -> Iterator[str]:
    records, rejected = manifest.counts["records"], manifest.counts["rejected"]
    if rejected > _MUCH_REJECTED * records:
        commonest = rejection_kinds(folder)[0]
        yield (
            f"{rejected:,} of {records:,} records were rejected; {commonest.count:,} of them for "
            f"{describe(commonest)}; the first is record {commonest.example['position']} of "
            f"{commonest.example['file']}; {REMEDIES[commonest.reason]}"
        )


def describe(kind: RejectionKind) -> str:
    """Return a fault with the keys that were there and the form that is nearest to them."""
    text = f"{kind.reason}: {kind.detail}"
    if "keys: " in text or not kind.keys:  # it says so itself, or there are none
        return text
    keys = ", ".join(key[:40] for key in kind.keys[:12])
    return f"{text}; keys: {keys}; the nearest known form is {nearest_form(kind.keys)}"


def _unknown(manifest: Manifest) -> Iterator[str]:
    tokens, pairs = manifest.tokens, manifest.counts["pairs"]
    answers = tokens["answers_with_unknown"]
    left_out = manifest.counts["reasons"].get("unknown_answer", 0)
    if answers + left_out > _MUCH_UNKNOWN * (pairs + left_out):
        lost = [c for c, _ in tokens["lost"][:10] if c.isprintable()]
        commonest = f"; the commonest: {' '.join(lost)}" if lost else ""
        yield (
            f"{answers:,} of {pairs:,} answers hold characters that the vocabulary does not know, "
            f"and {left_out:,} more were of nothing else{commonest}"
        )


def _lost(manifest: Manifest) -> Iterator[str]:
    """Yield what the tokenizer loses of the answers."""
    reasons, pairs = manifest.counts["reasons"], manifest.counts["pairs"]
    model = manifest.config["model_name_or_path"]
    found = [f"{what} in {reasons[name]:,}" for name, what in _LOST.items() if reasons.get(name)]
    if found:
        yield (
            f"of {pairs:,} answers, the tokenizer of {model} loses {', '.join(found)}; a model "
            f"learns no code or lists from them: {_KEEPS} keep them"
        )


def _refused(manifest: Manifest) -> Iterator[str]:
    refused = manifest.counts["reasons"].get("template_refused", 0)
    if refused:
        yield (
            f"{refused:,} answers are left out: the model's chat template refuses the turns before "
            "them, or leaves them no room; --chat-template duet takes all"
        )


def _splits(manifest: Manifest) -> Iterator[str]:
    asked = manifest.config.get("eval_fraction") or 0.0
    rows = manifest.rows("eval")
    if not asked:
        if not rows and any(shard.split == "eval" for shard in manifest.shards):
            yield "the eval split is empty: --eval-data-path gave no pair"
        return
    share = rows / max(manifest.counts["pairs"], 1)
    if abs(share - asked) > _FAR_OFF * min(asked, 1 - asked):
        state = "is empty" if not rows else f"holds {share:.1%} of the pairs"
        yield f"the eval split {state}; --eval-fraction asked for {asked:.1%} of the conversations"
