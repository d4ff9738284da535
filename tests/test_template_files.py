"""What a model's files may say of its template and its control tokens, odd as it may be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Role, Turn
from pipeline.errors import TokenizerError
from pipeline.generation.source import SourceEncoder
from pipeline.prepare.encode.encoders import make_pair_encoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from tests.chat_models import FREE, STRICT, gemma_like

H, A, S = Role.HUMAN, Role.ASSISTANT, Role.SYSTEM
NAMES = {H: "user", A: "assistant", S: "system"}


def saved(tokenizer: TextTokenizer, folder: Path) -> Any:
    """Save a tokenizer, and return what stock transformers loads of it."""
    from transformers import AutoTokenizer

    tokenizer.save(folder, model_max_length=512)
    return AutoTokenizer.from_pretrained(folder)


def stock_ids(stock: Any, turns: list[Turn], tools: list[Any] | None = None) -> list[int]:
    messages = [{"role": NAMES[turn.role], "content": turn.text} for turn in turns]
    ids: list[int] = stock.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=False
    )
    return ids


def row_of(tokenizer: TextTokenizer, turns: list[Turn], tools: str = "") -> dict[str, Any]:
    encoder = make_pair_encoder(tokenizer, 512, 512)
    (batch,) = encoder.encode([Conversation("x", turns, tools=tools)], PairCounts())
    row: dict[str, Any] = batch.to_pylist()[-1]
    return row


def change(path: Path, **said: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | said), "utf-8")


QUESTION = [Turn(H, "q"), Turn(A, "a")]


def test_the_end_of_a_template_leaves_a_texts_own_start_and_end_apart(tmp_path: Path) -> None:
    """As with BART: its decoder starts with ``</s>``, its labels with ``<s>``."""
    model = gemma_like(tmp_path / "model", ends=(5,), single="<bos> $A <eos>", start=1)
    tokenizer = load_tokenizer(str(model))
    assert (tokenizer.eos_id, tokenizer.prefix_ids) == (5, (2,))
    assert row_of(tokenizer, QUESTION)["labels"] == [2, *tokenizer.encode_batch(["a"])[0], 5]
    tagged = load_tokenizer(str(model), template="duet")
    assert row_of(tagged, QUESTION)["labels"] == [2, *tagged.encode_batch(["a"])[0], 1]


@pytest.mark.parametrize("where", ["generation_config.json", "decoder"])
def test_what_the_decoder_starts_with_is_found_where_transformers_finds_it(
    where: str, tmp_path: Path
) -> None:
    model = gemma_like(tmp_path, None, single="<bos> $A <eos>")
    for name in ("config.json", "generation_config.json"):
        change(model / name, decoder_start_token_id=None)
    assert load_tokenizer(str(model)).label_prefix_ids == ()
    if where == "decoder":
        change(model / "config.json", decoder={"decoder_start_token_id": 1})
    else:
        change(model / where, decoder_start_token_id=1)
    assert load_tokenizer(str(model)).label_prefix_ids == (2,)


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_an_answer_begins_with_what_generation_begins_it_with(
    where: str, tmp_path: Path, tiny_t5: Path
) -> None:
    model = gemma_like(tmp_path / "gemma", STRICT)
    change(model / where, forced_bos_token_id=4)
    tokenizer = load_tokenizer(str(model))
    assert row_of(tokenizer, QUESTION)["labels"] == [4, *tokenizer.encode_batch(["a"])[0], 5]
    shutil.copytree(tiny_t5, tmp_path / "t5")
    (tmp_path / "t5" / where).touch()
    said = json.loads((tmp_path / "t5" / where).read_text("utf-8") or "{}")
    (tmp_path / "t5" / where).write_text(json.dumps(said | {"forced_bos_token_id": 3}), "utf-8")
    t5, plain = load_tokenizer(str(tmp_path / "t5")), load_tokenizer(str(tiny_t5))
    labels = row_of(plain, QUESTION)["labels"]
    assert row_of(t5, QUESTION)["labels"] == [3, *labels]
    assert t5.fingerprint != plain.fingerprint


@pytest.mark.parametrize("is_added", [True, False], ids=["in tokenizer.json", "in the config"])
def test_a_template_that_names_tokens_of_its_own_reads_the_same_when_saved(
    is_added: bool, tmp_path: Path
) -> None:
    """Such as ``image_token``; transformers adds those that ``tokenizer.json`` lacks."""
    named = {"mark_token": "<mark>"}
    template = FREE.replace("~ m['role'] ~", "~ mark_token ~ m['role'] ~")
    more = [{"content": "<mark>"}] if is_added else []
    model = gemma_like(tmp_path / "model", template, more=more, extra_special_tokens=named)
    other = gemma_like(tmp_path / "other", template, more=more)
    tokenizer = load_tokenizer(str(model))
    stock = saved(tokenizer, tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert again.template is not None
    assert again.template.special == stock.special_tokens_map
    ids = row_of(tokenizer, QUESTION)["input_ids"]
    assert tokenizer.backend.token_to_id("<mark>") in ids
    assert ids == row_of(again, QUESTION)["input_ids"] == stock_ids(stock, QUESTION[:1])
    assert again.fingerprint == tokenizer.fingerprint != load_tokenizer(str(other)).fingerprint
    stock.save_pretrained(tmp_path / "stock")
    assert row_of(load_tokenizer(str(tmp_path / "stock")), QUESTION)["input_ids"] == ids


def test_the_end_that_a_template_writes_is_the_saved_ones_too(tmp_path: Path) -> None:
    """Older folders name their tokens in a file of their own, which counts before the config."""
    model = gemma_like(tmp_path / "model", ends=(5,))
    tokens = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}}
    (model / "special_tokens_map.json").write_text(json.dumps(tokens), "utf-8")
    tokenizer = load_tokenizer(str(model))
    assert saved(tokenizer, tmp_path / "saved").eos_token_id == tokenizer.eos_id == 5
    assert load_tokenizer(str(tmp_path / "saved")).eos_id == 5


CHAT = FREE.replace("<start_of_turn>", "<|im_start|>").replace("<end_of_turn>", "<|im_end|>")


@pytest.mark.parametrize("form", ["tokenizer.json", "added_tokens.json"])
def test_a_t5_keeps_the_chat_tokens_that_it_was_given(
    form: str, tiny_t5: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, T5Tokenizer

    stock: Any = T5Tokenizer.from_pretrained(tiny_t5)
    stock.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    stock.chat_template = CHAT
    stock.save_pretrained(tmp_path / "model")
    ids = stock.get_added_vocab()
    if form != "tokenizer.json":  # as T5Tokenizer wrote it, before it had a fast form
        (tmp_path / "model" / "tokenizer.json").unlink()
        (tmp_path / "model" / "spiece.model").write_bytes((tiny_t5 / "spiece.model").read_bytes())
        added = json.dumps({token: i for token, i in ids.items() if "im_" in token})
        (tmp_path / "model" / form).write_text(added, "utf-8")
        stock = AutoTokenizer.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes((tiny_t5 / "config.json").read_bytes())
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    found = row_of(tokenizer, QUESTION)["input_ids"]
    assert found == stock_ids(stock, QUESTION[:1])
    assert found.count(stock.convert_tokens_to_ids("<|im_start|>")) == 2
    again = saved(tokenizer, tmp_path / "saved")
    assert stock_ids(again, QUESTION[:1]) == found
    reloaded = load_tokenizer(str(tmp_path / "saved"))
    assert row_of(reloaded, QUESTION)["input_ids"] == found
    assert reloaded.fingerprint == tokenizer.fingerprint
    tagged = load_tokenizer(str(tmp_path / "model"), template="duet")
    assert tagged.fingerprint == load_tokenizer(str(tiny_t5)).fingerprint  # nothing writes them


HASHES = ["###", "# ##", "<a b>", "ababab", " <sp>"]
PARTS = ["#", "##", "###", " ", "a", "b", "ab", "<", "sp>", "<a", " b>", "user", "\n"]


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, Any]:
    """Of control tokens that hold their own beginning, or a space."""
    folder = tmp_path_factory.mktemp("hashes")
    more = [{"content": token} for token in HASHES]
    tokenizer = load_tokenizer(str(gemma_like(folder / "model", FREE, more=more)))
    return tokenizer, saved(tokenizer, folder / "saved")


@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join))
@settings(deadline=None, max_examples=60)
def test_no_part_of_a_text_is_a_control_token(hashes: tuple[TextTokenizer, Any], text: str) -> None:
    tokenizer, stock = hashes
    controls = {tokenizer.backend.token_to_id(token) for token in HASHES}
    for said in (text, f"a{'#' * len(text)}user"):
        turns = [Turn(S, f"{said}."), Turn(H, said), Turn(A, "a")]
        row = row_of(tokenizer, turns, tools=json.dumps([{"name": said}]))
        assert not controls & set(row["input_ids"])
        assert row["input_ids"] == stock_ids(stock, turns[:2], [{"name": said}])


def test_a_token_that_is_matched_in_normalized_text_is_matched_as_it_is(tmp_path: Path) -> None:
    """Else characters that only become a control token would be one."""
    more = [{"content": "<a b>", "normalized": True}]
    tokenizer = load_tokenizer(str(gemma_like(tmp_path / "model", FREE, more=more)))
    turns = [Turn(H, "<a\u2581b> <a b>"), Turn(A, "<a\u2581b>")]
    row = row_of(tokenizer, turns)
    assert tokenizer.backend.token_to_id("<a b>") not in row["input_ids"] + row["labels"]
    assert row["input_ids"] == stock_ids(saved(tokenizer, tmp_path / "saved"), turns[:1])


@pytest.mark.parametrize("name", ["{", "m"])
def test_an_added_word_that_code_of_a_template_holds_is_no_control_token(
    name: str, tmp_path: Path
) -> None:
    more = [{"content": name, "special": False}]
    tokenizer = load_tokenizer(str(gemma_like(tmp_path, FREE, more=more)))
    turns = [Turn(H, f"a {name} b"), Turn(A, f"{name}.")]
    row, added = row_of(tokenizer, turns), tokenizer.backend.token_to_id(name)
    assert added in row["input_ids"] and added in row["labels"]


def test_a_system_texts_first_newline_stays_before_tools(tmp_path: Path) -> None:
    tools = [{"name": "f"}]
    for template in (STRICT, FREE, None):
        tokenizer = load_tokenizer(str(gemma_like(tmp_path / str(template)[:9], template)))
        stock = saved(tokenizer, tmp_path / "saved")
        for text in ("\nBe kind.", "Be kind.\n", "\n\n."):
            turns = [Turn(S, text), *QUESTION]
            found = row_of(tokenizer, turns, json.dumps(tools))["input_ids"]
            wanted = stock_ids(stock, turns[:2], tools)
            assert found == (wanted if template else [2, *wanted, 1])


LISTS = {
    "named": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": FREE}],
    "odd": ["x", None, 5, {"name": "other"}, {"template": "no"}, {"name": "default"}],
    "empty": [],
    "object": {"default": FREE},
    "number": 5,
    "blank": "  \n",
}


@pytest.mark.parametrize("form", LISTS)
def test_templates_in_odd_forms(form: str, tmp_path: Path) -> None:
    """One of several by name; what names none is none."""
    model = gemma_like(tmp_path, None, chat_template=LISTS[form])
    template = load_tokenizer(str(model)).template
    assert (template.own if template else None) == (FREE if form == "named" else None)


def test_an_empty_file_is_no_template(tmp_path: Path) -> None:
    model = gemma_like(tmp_path, FREE)
    (model / "chat_template.jinja").write_text("\n", "utf-8")
    tokenizer = load_tokenizer(str(model))
    assert tokenizer.template is None
    stock = saved(tokenizer, tmp_path / "saved")
    assert [2, *stock_ids(stock, QUESTION[:1]), 1] == row_of(tokenizer, QUESTION)["input_ids"]


@pytest.mark.parametrize(
    "broken", ["{#- duet-t5 x -#}", '{#- duet-t5 {"system": 1} -#}', "{#- duet-t5 "]
)
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_broken_beginning_of_a_saved_template_is_one_line(
    broken: str, is_cut: bool, tmp_path: Path
) -> None:
    whole = load_tokenizer(str(gemma_like(tmp_path, FREE))).template
    assert whole is not None
    text = broken + ("" if is_cut else whole.text.partition("-#}")[2])
    model = gemma_like(tmp_path, text)
    with pytest.raises(
        TokenizerError, match=r"template cannot be used.*a broken beginning"
    ) as said:
        load_tokenizer(str(model))
    assert (said.value.where, "\n" in str(said.value)) == (str(model), False)
    assert load_tokenizer(str(model), template="duet").template is None


@pytest.mark.parametrize("ends", [["1", 5, None], "5", 5, {"a": 5}, [[5]], None, True])
def test_end_ids_of_any_type(ends: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gemma_like(tmp_path, STRICT, ends=ends)))
    assert tokenizer.eos_id == (5 if ends in (5, ["1", 5, None]) else 1)


def test_files_that_miss_what_they_should_say(tmp_path: Path, tiny_t5: Path) -> None:
    """``special`` of an added token, in the file where it may be missing; a vocabulary."""
    decoder = {"4": {"content": "<start_of_turn>"}, "5": {"content": "<end_of_turn>"}}
    model = gemma_like(tmp_path / "model", FREE, special=False, added_tokens_decoder=decoder)
    row = row_of(load_tokenizer(str(model)), [Turn(H, "<end_of_turn>"), Turn(A, "a")])
    assert row["input_ids"].count(5) == 1
    (tmp_path / "t5").mkdir()
    load_tokenizer(str(tiny_t5)).save(tmp_path / "t5", model_max_length=64)
    spec = json.loads((tmp_path / "t5" / "tokenizer.json").read_text("utf-8"))
    spec["normalizer"]["normalizers"].pop()  # no tokenizer of ours
    spec["model"].pop("vocab")
    (tmp_path / "t5" / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    (tmp_path / "t5" / "spiece.model").unlink()
    with pytest.raises(TokenizerError, match=r"the tokenizer cannot be read.*vocab"):
        load_tokenizer(str(tmp_path / "t5"))


def test_what_answers_starts_as_training_did(tmp_path: Path) -> None:
    """Read again without the model beside it: a prepared folder's tokenizer."""
    model = gemma_like(tmp_path / "model", ends=(5,), single="<bos> $A <eos>", start=1)
    tokenizer = load_tokenizer(str(model))
    saved(tokenizer, tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    found = SourceEncoder(again, 512).ids(Conversation("x", QUESTION[:1]))
    assert found == row_of(tokenizer, QUESTION)["input_ids"]


def test_a_piece_that_is_marked_as_a_control_token_comes_out_of_no_text(
    tiny_t5: Path, tmp_path: Path
) -> None:
    files = load_tokenizer(str(tiny_t5)).saved_files(model_max_length=512)
    spec, config = json.loads(files["tokenizer.json"]), json.loads(files["tokenizer_config.json"])
    pieces = [piece for piece, _ in spec["model"]["vocab"]]
    word = next(p for p in pieces if p[0] == "\u2581" and len(p) > 3 and p[1:].isalpha())
    token: dict[str, Any] = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"].append(
        token | {"id": pieces.index(word), "content": word, "special": True}
    )
    spec["added_tokens"].sort(key=lambda added: added["id"])
    config["chat_template"] = FREE
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path), None, "duet")
    row = row_of(tokenizer, [Turn(H, f"who {word[1:]}"), Turn(A, f"so {word[1:]} it")])
    assert pieces.index(word) not in row["labels"] + row["input_ids"]
    assert row["labels"] == [*tokenizer.encode_batch([f"so {word[1:]} it"])[0], tokenizer.eos_id]
