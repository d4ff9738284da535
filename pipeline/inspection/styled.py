"""Pairs as lines for a terminal: tags in colour, cuts marked, tokens parted on demand."""

import re
from collections.abc import Iterator, Sequence

from rich.text import Text

from pipeline.console.terminal import visible
from pipeline.conversation import Role
from pipeline.inspection.pairs import Pair
from pipeline.template import TAGS
from pipeline.tokenizer import TextTokenizer

_STYLES = {
    Role.HUMAN: "bold cyan",
    Role.ASSISTANT: "bold green",
    Role.SYSTEM: "bold magenta",
    Role.TOOL: "bold yellow",
}
_TAG = re.compile("^(?:" + "|".join(map(re.escape, TAGS.values())) + ")", re.MULTILINE)
_STYLE_OF_TAG = {tag: _STYLES[role] for role, tag in TAGS.items()}
_CUT = "bold red"
_BORDER = "│"
"""Between two tokens."""


def pair_lines(
    pair: Pair, tokenizer: TextTokenizer, *, tokens: bool = False, grep: str | None = None
) -> Iterator[Text]:
    """Yield the lines of a pair.

    Args:
        pair: The row.
        tokenizer: The folder's.
        tokens: Show where each token ends.
        grep: A regular expression to mark.
    """
    yield Text()
    yield Text(
        visible(
            f"--- {pair.split} row {pair.row}: conversation {pair.conversation_id}, "
            f"turn {pair.turn}; encoder, {len(pair.source)} tokens"
        ),
        "bold",
    )
    if pair.turns_cut:
        yield Text(f"✂ {pair.turns_cut} older turns of the history are cut", _CUT)
    if "question_cut" in pair.cuts:
        yield Text("✂ the last turn's beginning is cut", _CUT)
    yield _body(pair.encoder, pair.source, tokenizer, tokens=tokens, grep=grep)
    ending = " (cut: no </s>)" if "answer_cut" in pair.cuts else ""
    yield Text(f"--- decoder, {len(pair.target)} tokens{ending}", "bold")
    yield _body(pair.decoder, pair.target, tokenizer, tokens=tokens, grep=grep)
    if ending:
        yield Text("✂ the answer is cut here", _CUT)


def _body(
    text: str, ids: Sequence[int], tokenizer: TextTokenizer, *, tokens: bool, grep: str | None
) -> Text:
    if tokens:
        return _pieces(ids, tokenizer)
    shown = Text(visible(text))
    for match in _TAG.finditer(shown.plain):
        shown.stylize(_STYLE_OF_TAG[match[0]], *match.span())
    if grep:
        for match in re.finditer(grep, shown.plain):
            shown.stylize("black on yellow", *match.span())
    return shown


def _pieces(ids: Sequence[int], tokenizer: TextTokenizer) -> Text:
    """Return tokens as the vocabulary has them, parted; a newline also breaks the line."""
    shown = Text()
    for i in ids:
        piece = tokenizer.backend.id_to_token(i) or f"<{i}>"
        is_unknown = i == tokenizer.unk_id
        newline = piece == "\n"
        text = "⏎" if newline else "⇥" if piece == "\t" else visible(piece)
        shown.append(text, _CUT if is_unknown else None)
        shown.append(_BORDER + ("\n" if newline else ""), "dim")
    return shown
