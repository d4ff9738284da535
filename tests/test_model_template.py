"""A model's own chat template: rows are what stock transformers renders, for any conversation."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Role, Turn
from pipeline.errors import RecordError, TokenizerError
from pipeline.generation.source import SourceEncoder
from pipeline.prepare.encode.encoders import make_pair_encoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.tokenizer import TextTokenizer, load_tokenizer, model_template
from tests.chat_models import FREE, SPECIAL, STRICT, gemma_like

H, A, S, T = Role.HUMAN, Role.ASSISTANT, Role.SYSTEM, Role.TOOL
NAMES = {H: "user", A: "assistant", S: "system", T: "tool"}
WINDOW = 96
LONG = 4096


class Kind:
    """A tokenizer with a template, and what stock transformers loads of it."""

    def __init__(self, folder: Path, name: str, model: Path) -> None:
        from transformers import AutoTokenizer

        choice: Any = "duet" if name == "tagged" else "auto"
        self.name, self.tokenizer = name, load_tokenizer(str(model), template=choice)
        self.tokenizer.save(folder / "saved", model_max_length=WINDOW)
        self.saved = load_tokenizer(str(folder / "saved"))
        self.stock: Any = AutoTokenizer.from_pretrained(folder / "saved")

    def stock_ids(self, turns: list[Turn], tools: list[Any] | None = None) -> list[int]:
        messages = [{"role": NAMES[turn.role], "content": turn.text} for turn in turns]
        ids: list[int] = self.stock.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=False
        )
        if self.name != "tagged":
            return ids
        return [*self.tokenizer.prefix_ids, *ids, self.tokenizer.eos_id]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> dict[str, Kind]:
    """Gemma's kind with a template of two kinds and without, and a T5 with one of its own."""
    folder = tmp_path_factory.mktemp("templates")
    t5 = folder / "t5"
    t5.mkdir()
    for name in ("config.json", "spiece.model"):
        (t5 / name).write_bytes((tiny_t5 / name).read_bytes())
    own = FREE.replace("<start_of_turn>", "<extra_id_0>").replace("<end_of_turn>", "</s>")
    (t5 / "tokenizer_config.json").write_text(json.dumps({"chat_template": own}), "utf-8")
    models = {
        "strict": gemma_like(folder / "strict", STRICT, special=False),
        "free": gemma_like(folder / "free", FREE),
        "tagged": gemma_like(folder / "tagged", STRICT),
        "t5": t5,
    }
    return {name: Kind(folder / f"of-{name}", name, model) for name, model in models.items()}


def rows_of(
    tokenizer: TextTokenizer, conversation: Conversation, length: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    counts = PairCounts()
    encoder = make_pair_encoder(tokenizer, length, length)
    rows = [row for batch in encoder.encode([conversation], counts) for row in batch.to_pylist()]
    return rows, {name: n for name, n in counts.reasons.items() if n}


PIECES = [
    *SPECIAL, "</s>", "<extra_id_0>", "<0x0A>", "< bos>", "<<bos>bos>", "＜bos＞", "a", "B ", " ",
    "\n", "\n\n", "\t", "x = {1}", "### Human:", "user", "é", "😀", "{{ 1 }}", "{% if %}", "'", '"',
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
TURNS = st.lists(st.builds(Turn, st.sampled_from([H, H, A, A, S, T]), TEXT), max_size=7)
CONVERSATIONS = st.builds(
    lambda turns, question, answer: [*turns, Turn(H, question), *answer],
    TURNS,
    TEXT,
    st.lists(st.builds(Turn, st.sampled_from([A, A, T]), TEXT), min_size=1, max_size=3),
)


def conversation_of(turns: list[Turn], tools: str = "") -> Conversation:
    """Return a conversation as it is read: a system text that is blank is none."""
    shown = [turn for turn in turns if turn.role is not S or turn.text.strip()]
    return Conversation("x", [*shown, Turn(A, "so.")], tools=tools)


@pytest.mark.parametrize("name", ["strict", "free", "tagged", "t5"])
@given(CONVERSATIONS, st.sampled_from(["", '[{"name": "<bos>", "é": [1]}]']))
@settings(deadline=None, max_examples=15)
def test_a_row_is_what_stock_transformers_renders(
    name: str, kinds: dict[str, Kind], turns: list[Turn], tools: str
) -> None:
    kind, conversation = kinds[name], conversation_of(turns, tools)
    listed = json.loads(tools) if tools else None
    rows, _ = rows_of(kind.tokenizer, conversation, LONG)
    assert rows, "the answer that ends each conversation"
    for row in rows:
        assert row["input_ids"] == kind.stock_ids(conversation.turns[: row["turn"]], listed)
    assert rows == rows_of(kind.saved, conversation, LONG)[0]


@pytest.mark.parametrize("name", ["strict", "free", "t5"])
@given(CONVERSATIONS)
@settings(deadline=None, max_examples=8)
def test_the_oldest_turns_go_until_the_rest_fits(
    name: str, kinds: dict[str, Kind], turns: list[Turn]
) -> None:
    kind, conversation = kinds[name], conversation_of(turns)
    for row in rows_of(kind.tokenizer, conversation, WINDOW)[0]:
        ids, before = row["input_ids"], conversation.turns[: row["turn"]]
        assert len(ids) <= WINDOW
        system = before[:1] if before[0].role is S else []
        history = before[len(system) :]
        last = max(i for i, turn in enumerate(history) if i == 0 or turn.role is not A)
        rendered = [kind.stock_ids([*system, *history[at:]]) for at in range(last + 1)]
        fitting = [ids for ids in rendered if len(ids) <= WINDOW]
        assert not fitting or ids == fitting[0]


@pytest.mark.parametrize("name", ["strict", "free", "tagged", "t5"])
def test_a_question_and_a_system_text_that_are_too_long_keep_end_and_beginning(
    name: str, kinds: dict[str, Kind]
) -> None:
    kind = kinds[name]
    turns = [Turn(S, "s " * 200 + "X"), Turn(H, "old"), Turn(A, "a"), Turn(H, "Y" + " q" * 200)]
    rows, reasons = rows_of(kind.tokenizer, Conversation("x", [*turns, Turn(A, "a")]), WINDOW)
    text = kind.tokenizer.backend.decode(rows[1]["input_ids"], skip_special_tokens=False)
    assert reasons == {"header_cut": 2, "question_cut": 1}
    assert WINDOW - 1 <= len(rows[1]["input_ids"]) <= WINDOW
    assert "s s" in text and "q q" in text and "X" not in text and "Y" not in text
    whole = kind.stock_ids([Turn(S, "s"), Turn(H, "q")])
    assert rows[1]["input_ids"][-3:] == whole[-3:]  # what the answer begins behind


@pytest.mark.parametrize("name", ["strict", "free", "tagged", "t5"])
def test_control_tokens_come_from_the_template_alone(name: str, kinds: dict[str, Kind]) -> None:
    tokenizer = kinds[name].tokenizer
    said = "".join(PIECES) + "</s> <pad> <unk>"
    controls = {tokenizer.backend.token_to_id(t["content"]) for t in added_tokens(tokenizer)}

    def count(text: str) -> tuple[int, list[int]]:
        turns = [Turn(S, text), Turn(H, text), Turn(A, text), Turn(T, text), Turn(A, text)]
        rows, _ = rows_of(tokenizer, Conversation("x", turns, tools=json.dumps([text])), LONG)
        return sum(i in controls for i in rows[1]["input_ids"]), rows[1]["labels"]

    number, labels = count(said)
    assert number == count("a")[0]
    assert [i for i in labels if i in controls] == [tokenizer.eos_id] == labels[-1:]
    assert tokenizer.decode(labels).replace(" ", "").startswith("<pad><eos><bos>")


def added_tokens(tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    spec = json.loads(tokenizer.files["tokenizer.json"])
    return [token for token in spec["added_tokens"] if token["content"] not in "\n\t<unk>"]


@pytest.mark.parametrize("template", [STRICT, FREE])
def test_what_a_model_takes_is_rendered_by_its_template_as_it_is(
    template: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(str(gemma_like(tmp_path, template)))
    stock: Any = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["Hi", " x = {1}\n", "\n\ny", "</s> é", "< bos>", "{{ 1 }} 😀"]
    turns = [Turn((H, A)[i % 2], text) for i, text in enumerate([*texts, *texts])]
    rows, reasons = rows_of(tokenizer, Conversation("x", turns), LONG)
    assert (len(rows), reasons) == (6, {})
    for row in rows:
        before = turns[: row["turn"]]
        messages = [{"role": NAMES[turn.role], "content": turn.text} for turn in before]
        ids = stock.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert row["input_ids"] == ids


def test_a_strict_template_takes_any_conversation(kinds: dict[str, Kind]) -> None:
    kind = kinds["strict"]
    turns = [
        Turn(S, "Be kind."), Turn(A, "Hello"), Turn(H, "one"), Turn(H, "two"), Turn(A, "x"),
        Turn(A, "y"), Turn(T, "42"), Turn(S, "Now short."), Turn(A, "z"),
    ]  # fmt: skip
    rows, reasons = rows_of(kind.tokenizer, Conversation("x", turns), LONG)
    assert kind.tokenizer.backend.decode(rows[-1]["input_ids"], skip_special_tokens=False) == (
        "<bos><start_of_turn>user\nBe kind.\n\none\n\ntwo<end_of_turn>\n\n"
        "<start_of_turn>model\nx\n\ny<end_of_turn>\n\n"
        "<start_of_turn>user\n42\n\nNow short.<end_of_turn>\n\n<start_of_turn>model\n"
    )
    assert reasons == {"answer_without_question": 1, "opening_dropped": 3}


@pytest.mark.parametrize(
    ("ends", "end"), [((1, 5), "<end_of_turn>"), ((1,), "<eos>"), ((), "<eos>")]
)
def test_an_answer_ends_with_what_generation_stops_at(
    ends: tuple[int, ...], end: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(gemma_like(tmp_path, STRICT, ends=ends)))
    assert tokenizer.backend.id_to_token(tokenizer.eos_id) == end
    rows, _ = rows_of(tokenizer, Conversation("x", [Turn(H, "q"), Turn(A, "a")]), LONG)
    assert rows[0]["labels"] == [*tokenizer.encode_batch(["a"])[0], tokenizer.eos_id]
    assert tokenizer.backend.token_to_id("<eos>") not in rows[0]["input_ids"]


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "got"),
    [
        ("{{ raise_exception('not today') }}", "TemplateError: not today"),
        ("{% for m in messages %}", "TemplateSyntaxError: Unexpected end of template"),
        ("{{ messages[0]['content'].__class__.__mro__ }}", "SecurityError: access to attribute"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ bos_token }}", "it leaves out what the user says"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
         "it leaves out what the assistant says"),
        (LOOP, "no end after 0.2 seconds"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_one_line(
    template: str, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_template, "SECONDS", 0.2)
    folder = str(gemma_like(tmp_path, template))
    with pytest.raises(TokenizerError, match="chat template cannot be used") as caught:
        load_tokenizer(folder)
    assert caught.value.where == folder
    assert caught.value.got.startswith(got)
    assert load_tokenizer(folder, template="duet").template is None


def test_a_conversation_that_a_template_refuses_is_left_out_and_counted(tmp_path: Path) -> None:
    picky = "{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + FREE
    tokenizer = load_tokenizer(str(gemma_like(tmp_path, picky)))
    turns = [Turn(H, "bad"), Turn(A, "a"), Turn(H, "q"), Turn(A, "b")]
    rows, reasons = rows_of(tokenizer, Conversation("x", turns), LONG)
    assert [row["turn"] for row in rows] == [3]  # without its oldest turn
    assert reasons == {"template_refused": 1, "history_cut": 1}
    assert rows_of(tokenizer, Conversation("x", turns[:2]), LONG)[1]["no_pair"] == 1
    with pytest.raises(RecordError, match="does not take this conversation"):
        SourceEncoder(tokenizer, LONG).ids(Conversation("x", turns[:1]))


def test_a_wish_for_a_template_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    folder = str(gemma_like(tmp_path, None))
    with pytest.raises(TokenizerError, match="no chat template of its own"):
        load_tokenizer(folder, template="model")
    assert load_tokenizer(folder).template is None


def test_what_answers_reads_as_what_was_trained(kinds: dict[str, Kind]) -> None:
    turns = [Turn(S, "Be kind."), Turn(H, "one"), Turn(H, "two")]
    for kind in kinds.values():
        found = SourceEncoder(kind.saved, LONG).ids(Conversation("x", turns))
        assert found == kind.stock_ids(turns)
        messages = [{"role": NAMES[turn.role], "content": turn.text} for turn in turns]
        text = kind.stock.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert SourceEncoder(kind.saved, LONG).text_ids(text) == found
        assert SourceEncoder(kind.saved, WINDOW).dropped_turns(Conversation("x", turns)) == 0
