"""Records of every form and their near misses, for hypothesis to draw: what a fuzzer feeds."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

UNKNOWN = "\U00013000\U00013001"
TEXTS = st.sampled_from(
    [
        *("", " ", "\n", "\t x", "a", "Hello.", "2 + 2 = 4", "word " * 30, "a\r\nb\rc\n", "x  y"),
        *("\u200b\u200b", "\ufeff", "\u2028", "\x00", "\x01\x02", "\u0301", "e\u0301 \u0301x"),
        *("\ud800", "a\udfffb", UNKNOWN, f"{UNKNOWN}.", f"ok {UNKNOWN}", "\ufdfa", "\u3000"),
        *("### Human: x", "a\n### Assistant: b\n### Tool:", "\n\uff03\uff03\uff03 Human: x"),
        *("y\n\x01### Human: x", "y\n###\u00a0Human: x", "y\n### Human\uff1a x", "\n\t### System:"),
        *("</s>", "<pad><extra_id_0>", "\n</s>", "<p>Hi <b>you</b></p>", "<div>x", "`~^\\{}<"),
        *("'", '"},{"', "[]", "null", "NaN", '{"a": 1}', "- " * 40, "\n" * 70, "a" * 400),
    ]
) | st.text(max_size=12)
NAMES = st.sampled_from(
    [
        *("human", "gpt", "human", "gpt", "user", "assistant", "system", "tool", "Human ", "AI"),
        *("developer", "tool_call", "observation", "bing", "alien", "", " ", "GPT\n"),
    ]
)
NUMBERS = st.sampled_from([0, 1, -1, 7, 0.0, -0.0, 0.5, 1.0, 1.5, 1e300, 10**30])
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
PARTS = st.lists(
    TEXTS
    | st.builds(lambda text: {"type": "text", "text": text}, TEXTS)
    | st.sampled_from([{"type": "image_url"}, {"type": "text"}, {"text": "x"}, None, 5]),
    max_size=3,
)
CONTENTS = st.one_of(TEXTS, TEXTS, TEXTS, PARTS, JUNK)
ARGUMENTS = st.one_of(JUNK, JUNK.map(json.dumps), TEXTS)
CALLS = st.one_of(
    st.builds(lambda n, a: {"function": {"name": n, "arguments": a}}, TEXTS, ARGUMENTS),
    st.builds(lambda n, a: {"name": n, "arguments": a}, TEXTS, ARGUMENTS),
    st.builds(lambda n: {"function": None, "name": n}, TEXTS),
    JUNK,
)
TURN_EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "weight": NUMBERS | st.sampled_from([None, False, "0"]),
        "train": st.sampled_from([False, True, None, 0]),
        "tool_calls": st.lists(CALLS, max_size=2) | JUNK,
        "function_call": CALLS,
        "reasoning_content": TEXTS | st.none(),
        "thinking": JUNK,
        "images": st.sampled_from([None, [], "", ["x"]]),
        "text": CONTENTS,
        "role": NAMES,
        "name": TEXTS,
    },
)
PLAIN_TURN = st.builds(lambda who, text: {"from": who, "value": text}, NAMES, TEXTS)
MESSAGE = st.builds(lambda who, text: {"role": who, "content": text}, NAMES, CONTENTS)
ODD_TURN = st.builds(lambda turn, more: turn | more, PLAIN_TURN | MESSAGE, TURN_EXTRAS)
GOOD_TURN = st.builds(
    lambda who, text: {"from": who, "value": text}, st.sampled_from(["human", "gpt"]), TEXTS
)
TURNS = st.one_of(
    st.lists(GOOD_TURN, max_size=6),
    st.lists(PLAIN_TURN, max_size=5),
    st.lists(st.one_of(MESSAGE, ODD_TURN), max_size=4),
)
TOOLS = st.one_of(st.lists(JUNK, max_size=2), JUNK, st.lists(JUNK, max_size=2).map(json.dumps))
RECORD_EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXTS | NUMBERS | st.sampled_from(["Abc1234_0", "Abc1234_2", "conv_0", "conv_2"]),
        "conversation_id": TEXTS | st.none() | st.booleans(),
        "system": CONTENTS,
        "system_prompt": TEXTS,
        "system_message": TEXTS | st.none(),
        "tools": TOOLS,
        "image": st.sampled_from([None, "", "x.png"]),
        "lang": JUNK,
    },
)


def _node(name: str, role: str, content: Any, weight: Any, kind: str) -> dict[str, Any]:
    where = "text" if kind in ("code", "execution_output") else "parts"
    message = {
        "author": {"role": role},
        "content": {"content_type": kind, where: content},
        "weight": weight,
    }
    return {"id": name, "message": message}


def _tree(nodes: list[dict[str, Any]], parents: list[int], current: int) -> dict[str, Any]:
    """Link nodes to a tree, in which hardly ever a node is its own ancestor."""
    mapping = {}
    for i, (node, parent) in enumerate(zip(nodes, parents, strict=False)):
        above = str(parent) if parent < i else None if parent < 8 else "0"
        mapping[str(i)] = node | {"parent": above}
    return {"mapping": mapping, "current_node": str(current)}


KINDS = st.sampled_from(
    ["text"] * 5 + ["code", "thoughts", "multimodal_text", "user_editable_context", "other"]
)
NODES = st.lists(
    st.one_of(
        st.builds(_node, TEXTS, NAMES, CONTENTS | st.lists(TEXTS, max_size=2), NUMBERS, KINDS),
        st.just({"message": None}),
    ),
    min_size=1,
    max_size=4,
)
TREES = st.builds(
    _tree, NODES, st.lists(st.integers(0, 9), min_size=4, max_size=4), st.integers(0, 4)
)
MESSAGES_OR_TEXT = st.one_of(CONTENTS, st.lists(MESSAGE, max_size=3))
FORMS = st.one_of(
    *(TURNS.map(lambda turns, key=key: {key: turns}) for key in ("conversations", "messages")),
    TURNS.map(lambda turns: {"conversations": None, "conversation": turns, "messages": []}),
    TURNS.map(lambda turns: {"conversations": json.dumps(turns)}),
    st.fixed_dictionaries({"prompt": MESSAGES_OR_TEXT, "completion": MESSAGES_OR_TEXT}),
    st.fixed_dictionaries(
        {"instruction": CONTENTS, "output": CONTENTS},
        optional={
            "input": TEXTS | st.none(),
            "history": st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=2) | JUNK,
        },
    ),
    *(
        st.fixed_dictionaries({question: CONTENTS, answer: CONTENTS})
        for question in ("question", "query", "input")
        for answer in ("answer", "response", "output")
    ),
    TREES,
    st.fixed_dictionaries({"prompt": TEXTS, "chosen": JUNK, "rejected": JUNK}),
    st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS, "label": JUNK}),
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Draw a record of some form, with a key taken away, renamed, emptied or filled with junk."""
    record = {**draw(FORMS), **draw(RECORD_EXTRAS)}
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if not record:
            break
        key = draw(st.sampled_from(sorted(record)))
        change = draw(st.sampled_from(["drop", "rename", "junk", "null", "string"]))
        value = record.pop(key)
        if change == "rename":
            record[key + draw(st.sampled_from(["s", " ", "_"]))] = value
        elif change != "drop":
            junk = {"junk": JUNK, "null": st.none(), "string": st.just(json.dumps(value))}
            record[key] = draw(junk[change])
    return record


@st.composite
def parts(draw: st.DrawFn) -> list[Any]:
    """Draw a conversation cut into parts, by right indices and wrong, under all kinds of bases."""
    turns = draw(st.lists(GOOD_TURN, min_size=2, max_size=8))
    base = draw(st.sampled_from(["QWJhYvA", "abcdefg", "identity", "a_b-c_9", "conv"]))
    found, start = [], draw(st.integers(0, 2))
    at = 0
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.integers(at, len(turns)))
        index = start + at + draw(st.sampled_from([0] * 6 + [1, -1]))
        found.append({"id": f"{base}_{index}", "conversations": turns[at:end]})
        at = draw(st.integers(max(0, end - 1), end))
    return found


RECORDS = st.lists(
    st.one_of(
        mutated().map(lambda record: [record]),
        mutated().map(lambda record: [record]),
        mutated().map(lambda record: [record, record]),
        TURNS.map(lambda turns: [turns]),
        JUNK.map(lambda value: [value]),
        parts(),
        parts(),
    ),
    min_size=1,
    max_size=4,
).map(lambda groups: [record for group in groups for record in group])


def variants(records: list[Any], seed: int, count: int) -> Iterator[list[Any]]:
    """Yield records with pieces of them taken away, doubled, renamed, or put in others' places.

    Hypothesis takes longer to draw a list of records than a program to read it: so each is used
    more than once.
    """
    rng = random.Random(seed)
    for _ in range(count):
        changed = copy.deepcopy(records)
        for _ in range(rng.choice((1, 1, 2, 4))):
            places = list(_places(changed))
            if not places:
                break
            holder, key, value = rng.choice(places)
            other = copy.deepcopy(rng.choice(places)[2])
            match rng.randrange(5):
                case 0:
                    del holder[key]
                case 1:
                    holder[key] = other
                case 2:
                    holder[key] = rng.choice((None, "", [], {}, 0, True, json.dumps(value)))
                case 3 if isinstance(holder, list):
                    holder.insert(rng.randrange(len(holder) + 1), value)
                case 3:
                    holder[rng.choice(_KEYS)] = holder.pop(key)
                case _ if isinstance(holder, list):
                    rng.shuffle(holder)
                case _:
                    holder[rng.choice(_KEYS)] = other
        if changed:
            yield changed


_KEYS = (
    *("conversations", "conversation", "messages", "id", "conversation_id", "system", "tools"),
    *("system_prompt", "from", "role", "value", "content", "text", "weight", "train", "images"),
    *("tool_calls", "function_call", "thinking", "prompt", "completion", "instruction", "input"),
    *("output", "question", "answer", "response", "query", "history", "data", "label", "chosen"),
)


def _places(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield every place in a value: the list or object, the index or key, and what is there."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key, inner
            yield from _places(inner)
