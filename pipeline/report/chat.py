r"""Rows of a prepared folder as chat: the text of ids, parted at its tags.

    header\n\n### Human: Hi\n### Assistant:   ->   system, human   (and the answer, from the labels)

A line that begins with a tag begins a turn: ``template.py`` sees to it that no text can do so.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.page import Bubble, Chat, shorten
from pipeline.store.manifest import Manifest
from pipeline.store.shards import open_split
from pipeline.template import PROMPT, TAGS
from pipeline.tokenizer import TextTokenizer, load_tokenizer

_TAG = re.compile("^(" + "|".join(map(re.escape, TAGS.values())) + ") ?", re.MULTILINE)
_ROLES = {tag: str(role).lower() for role, tag in TAGS.items()}
_SHOWN_TURNS = 3
_LONGEST = 2_400
"""Characters of a turn; of a longer one, the beginning and the end."""


def sample_chats(folder: Path, manifest: Manifest, split: str, count: int) -> list[Chat]:
    """Return some pairs, spread over a split.

    Raises:
        PreparedFolderError, TokenizerError: The folder is damaged.
    """
    table = open_split(folder, manifest, split)
    shown = min(count, table.num_rows)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    places = np.linspace(0, table.num_rows - 1, shown, dtype=int).tolist()
    return [_chat(place, table.slice(place, 1).to_pylist()[0], tokenizer) for place in places]


def _chat(place: int, row: dict[str, Any], tokenizer: TextTokenizer) -> Chat:
    source, target = row["input_ids"], row["labels"]
    turns = bubbles(tokenizer.decode(source))
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
    if not text.endswith(PROMPT):
        return [Bubble("text", shorten(text, _LONGEST))]
    header, *parts = _TAG.split(text.removesuffix(PROMPT))
    turns = [Bubble("system", header.strip(), "header")] if header.strip() else []
    turns += [
        Bubble(_ROLES[tag], said.removesuffix("\n"))
        for tag, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [turn._replace(text=shorten(turn.text, _LONGEST)) for turn in turns]
