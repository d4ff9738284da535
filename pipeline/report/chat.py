r"""Rows of a prepared folder as chat: the text of ids, parted at its tags.

header\n\n### Human: Hi\n### Assistant:   ->   system, human   (and the answer, from the labels)

"""

from pathlib import Path
from typing import Any

from pipeline.console.units import spread
from pipeline.report.page import Bubble, Chat, shorten
from pipeline.store.manifest import Manifest
from pipeline.store.shards import open_split
from pipeline.template import parse_encoder_text
from pipeline.tokenizer import TextTokenizer, load_tokenizer

_SHOWN_TURNS = 3
_LONGEST = 2_400
"""Characters of a turn; of a longer one, the beginning and the end."""


def sample_chats(folder: Path, manifest: Manifest, split: str, count: int) -> list[Chat]:
    """Return some pairs, spread over a split.

    Raises:
        PreparedFolderError, TokenizerError: The folder is damaged.
    """
    table = open_split(folder, manifest, split)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    return [
        _chat(place, table.slice(place, 1).to_pylist()[0], tokenizer)
        for place in spread(table.num_rows, count)
    ]


def _chat(place: int, row: dict[str, Any], tokenizer: TextTokenizer) -> Chat:
    source, target = row["input_ids"], row["labels"]
    turns = bubbles(tokenizer.decode_source(source))
    answer = Bubble("answer", shorten(tokenizer.decode(target), _LONGEST), "answer to learn")
    cut = "" if target[-1:] == [tokenizer.eos_id] else ", cut: it has no </s>"
    return Chat(
        title=f"{row['conversation_id']}, turn {row['turn']}",
        note=f"row {place:,}: {len(source):,} encoder tokens, {len(target):,} decoder tokens{cut}",
        folded=turns[:-_SHOWN_TURNS],
        shown=[*turns[-_SHOWN_TURNS:], answer],
    )


def bubbles(text: str) -> list[Bubble]:
    r"""Return the turns of an encoder's text; one whose tags are not known is one bubble.

    >>> [tuple(bubble)[:2] for bubble in bubbles("Be kind.\n\n### Human: Hi\nyou\n### Assistant:")]
    [('system', 'Be kind.'), ('human', 'Hi\nyou')]
    """
    parsed = parse_encoder_text(text)
    if parsed is None:
        return [Bubble("text", shorten(text, _LONGEST))]
    header, turns = parsed
    shown = [Bubble("system", header, "header")] if header else []
    shown += [Bubble(str(turn.role).lower(), turn.text) for turn in turns]
    return [bubble._replace(text=shorten(bubble.text, _LONGEST)) for bubble in shown]
