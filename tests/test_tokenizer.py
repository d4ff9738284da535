"""The lossless tokenizer: literal ids, round trip, and identity with what AutoTokenizer loads."""

import itertools
import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import TokenizerError
from pipeline.template import Escaper, encoder_text
from pipeline.tokenizer import TextTokenizer, load_tokenizer, tokenizer_of
from pipeline.tokenizer.vocabulary import NEW_PIECES
from tests.conftest import REAL_TOKENIZER

CODE = "def f(x):\n\tif x < 2:\n\t    return {'a': `x` ^ ~x}\\n\n\n  # done\t\n"


@pytest.fixture(scope="session", params=["tiny", "real"])
def any_tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    """The lossless tokenizer of the tiny vocabulary, and of the real one where it is at hand."""
    tokenizer: TextTokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer


@pytest.fixture(scope="session")
def auto(any_tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What stock transformers loads from the saved tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("saved")
    any_tokenizer.save(folder, model_max_length=777)
    return AutoTokenizer.from_pretrained(folder)


def control_ids(tokenizer: TextTokenizer) -> set[int]:
    """Return the ids that no text may have: <pad>, </s>, and the sentinels."""
    sentinels = (tokenizer.backend.token_to_id(f"<extra_id_{i}>") for i in range(100))
    return {0, 1, *sentinels}


# --- literal ids ----------------------------------------------------------------------------------


def test_the_nine_pieces_have_these_ids(real_tokenizer: TextTokenizer) -> None:
    ids = [real_tokenizer.backend.token_to_id(piece) for piece in NEW_PIECES]
    assert NEW_PIECES == ("\n", "\t", "<", "\\", "^", "`", "{", "}", "~")
    assert ids == list(range(32100, 32109))
    assert real_tokenizer.vocab_size == 32109


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [21820, 296]),
        ("a  b", [3, 9, 3, 3, 115]),  # a space is T5's own piece, 3
        (" x", [3, 3, 226]),  # the dummy comes before a text that begins with a space, too
        ("\n x", [32100, 3, 3, 226]),  # and starts each line, but a newline gets none
        ("x\n", [3, 226, 32100]),
        ("\t\n", [32101, 32100]),
        ("</s>", [3, 32102, 87, 7, 3155]),
        ("", []),
        ("\x01", []),
    ],
)
def test_these_texts_have_these_ids(
    real_tokenizer: TextTokenizer, text: str, ids: list[int]
) -> None:
    assert real_tokenizer.encode_batch([text]) == [ids]


def test_other_words_have_t5s_own_ids(real_tokenizer: TextTokenizer) -> None:
    from tokenizers import Tokenizer

    stock = Tokenizer.from_file(str(REAL_TOKENIZER / "tokenizer.json"))
    text = "Flan-T5 answers politely: 12,345 Grüße, naïve façade — “quoted” ½ ﬁ."
    assert real_tokenizer.encode_batch([text])[0] == stock.encode(text).ids[:-1]


# --- properties -----------------------------------------------------------------------------------

# Characters that T5's vocabulary knows and NFKC leaves alone.
KNOWN = st.text(
    st.sampled_from("abcXYZ019 .,:;!?()[]'\"#*-_/+=%&$@|>\n\t<\\^`{}~éüßâ"), max_size=80
)


@given(KNOWN)
@settings(deadline=None)
def test_text_comes_back_to_the_letter(real_tokenizer: TextTokenizer, text: str) -> None:
    assert real_tokenizer.decode(real_tokenizer.encode_batch([text])[0]) == text


@given(st.text(st.sampled_from("abcXYZ019 .,:;!?()[]'\"#*-_/+=%&$@|>\n\t<\\^`{}~"), max_size=80))
@settings(deadline=None)
def test_printable_ascii_comes_back_to_the_letter(any_tokenizer: TextTokenizer, text: str) -> None:
    assert any_tokenizer.decode(any_tokenizer.encode_batch([text])[0]) == text


@given(
    st.lists(
        st.sampled_from(
            [
                "</s>",
                "<pad>",
                "<unk>",
                "<extra_id_5>",
                "＜/s＞",
                "a",
                " ",
                "\n",
                "\t",
                "<",
                "▁",
                "\x01",
                "\r",
                "\u0301",
                "\u200b",
                "\ufeff",
                "😀",
                "aaa",
                "### Human:",
                "﷽",
                "\u2028",
                "ﬁ",
                "\u00a0",
                "の",
            ]
        ),
        max_size=12,
    ).map("".join)
)
@settings(deadline=None)
def test_nasty_text_gives_no_control_id_and_the_ids_of_auto_tokenizer(
    any_tokenizer: TextTokenizer, auto: Any, text: str
) -> None:
    (ids,) = any_tokenizer.encode_batch([text])
    assert not control_ids(any_tokenizer).intersection(ids)
    assert auto(text, split_special_tokens=True).input_ids == [*ids, 1]
    assert auto(text).input_ids == [*ids, 1], "the saved setting must say split_special_tokens"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(deadline=None)
def test_any_text_gives_the_ids_of_auto_tokenizer(
    any_tokenizer: TextTokenizer, auto: Any, text: str
) -> None:
    (ids,) = any_tokenizer.encode_batch([text])
    assert not control_ids(any_tokenizer).intersection(ids)
    assert auto(text, split_special_tokens=True).input_ids == [*ids, 1]


@given(st.lists(st.text(st.sampled_from("ab #:Human\n\t\x01 ＃\u0301"), max_size=12), max_size=4))
@settings(deadline=None)
def test_ids_of_lines_one_after_another_are_the_ids_of_the_text(
    any_tokenizer: TextTokenizer, lines: list[str]
) -> None:
    pieces = [line + "\n" for line in lines]
    whole = any_tokenizer.encode_batch(["".join(pieces)])[0]
    assert whole == [i for ids in any_tokenizer.encode_batch(pieces) for i in ids]


# --- saving and loading ---------------------------------------------------------------------------


def test_code_round_trips_through_the_saved_folder(auto: Any) -> None:
    assert auto.decode(auto(CODE).input_ids, skip_special_tokens=True) == CODE
    assert auto.model_max_length == 777
    assert (auto.pad_token_id, auto.eos_token_id, auto.unk_token_id) == (0, 1, 2)


def test_the_chat_template_is_saved(any_tokenizer: TextTokenizer, auto: Any) -> None:
    from pipeline.conversation import Role, Turn

    messages = [{"role": "user", "content": "a\n### Human: b"}]
    text = auto.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    turns = [Turn(Role.HUMAN, "a\n### Human: b")]
    assert text == encoder_text(turns, Escaper(any_tokenizer.normalize))


def test_the_chat_template_has_tools_and_calls_as_the_rows_have_them(
    any_tokenizer: TextTokenizer, auto: Any
) -> None:
    from pipeline.conversation import ROLES_BY_NAME
    from pipeline.prepare.read.records import RecordCounts, parse_record

    tools = [{"type": "function", "function": {"name": "f", "parameters": {"é": [1, None]}}}]
    call = {"name": "f", "arguments": {"x": "<é>'", "y": [1.5, True]}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "So:", "tool_calls": [
            {"type": "function", "function": {"name": "g", "arguments": '{"x": 1}'}},
            {"name": "h", "arguments": None}]},
    ]  # fmt: skip
    text = auto.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=False
    )
    record = {"messages": messages, "tools": tools}
    found = parse_record(record, ROLES_BY_NAME, RecordCounts())
    assert text == encoder_text(found.turns, Escaper(any_tokenizer.normalize), found.tools)
    assert 'Tools: [{"type": "function", "function": {"name": "f", "parameters"' in text
    assert '### Assistant: {"name": "f", "arguments": {"x": "<é>\'", "y": [1.5, true]}}\n' in text
    assert 'So:\n{"name": "g", "arguments": {"x": 1}}\n{"name": "h", "arguments": null}\n' in text


def test_a_folder_with_this_tokenizer_is_used_as_it_is(
    any_tokenizer: TextTokenizer, auto: Any, tmp_path: Path
) -> None:
    auto.save_pretrained(tmp_path / "by_transformers")
    again = load_tokenizer(str(tmp_path / "by_transformers"))
    assert again.fingerprint == any_tokenizer.fingerprint
    assert (
        again.files["tokenizer.json"]
        == (tmp_path / "by_transformers" / "tokenizer.json").read_bytes()
    )


def test_spiece_model_alone_gives_the_same_tokenizer(
    real_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    shutil.copy(REAL_TOKENIZER / "spiece.model", tmp_path)
    assert load_tokenizer(str(tmp_path)).fingerprint == real_tokenizer.fingerprint


def test_the_saved_spiece_model_has_the_same_pieces(
    real_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    real_tokenizer.save(tmp_path, model_max_length=64)
    processor = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    assert pieces == [real_tokenizer.backend.id_to_token(i) for i in range(32109)]
    line = "if (a < b) { x = `c` ^ ~d; }  // e\\f"
    assert processor.encode(line) == real_tokenizer.encode_batch([line])[0]
    assert pieces[32100:] == list(NEW_PIECES)


def test_the_saved_spiece_model_gives_the_same_ids_and_texts(
    any_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    any_tokenizer.save(tmp_path, model_max_length=64)
    processor = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    middles = ["".join(m) for size in range(6) for m in itertools.product("\n\t a<", repeat=size)]
    middles += ["\n" * 31, "\n" * 3 + "\t" * 28, "\n\t" * 4, "\n    </s>\n", "\r\n", "\n\u00a0"]
    texts = [f"x{middle}y" for middle in middles]
    ids = any_tokenizer.encode_batch(texts)
    assert processor.encode(texts) == ids
    assert processor.decode(ids) == [any_tokenizer.decode(each) for each in ids]
    # Where it is known to differ: a text's first and last newline, a run that is too long.
    space = processor.piece_to_id("▁")
    assert processor.encode("\nx")[:1] == [space] == processor.encode("x\n")[-1:]
    assert processor.encode("x" + "\n" * 32 + "y").count(space) == 3


def test_a_tokenizer_extended_the_old_way_becomes_this_one(
    real_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    """FastChat-T5 added the pieces, and one for the space, behind a [PAD] at 32,100."""
    spec = json.loads((REAL_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    added = ["[PAD]", "<", "{", "\n", "}", "`", " ", "\\", "^", "\t"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for i, piece in enumerate(added):
        spec["added_tokens"].append({"id": 32100 + i, "content": piece, **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    assert load_tokenizer(str(tmp_path)).fingerprint == real_tokenizer.fingerprint


def test_one_that_is_no_t5s_goes_through_unchanged(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", "hello", "world"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "BartTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bart"}', encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert (tokenizer.prefix_ids, tokenizer.eos_id, tokenizer.vocab_size) == ((0,), 2, 6)
    assert tokenizer.encode_batch(["hello  world"]) == [[4, 5]]
    # A vocabulary may have holes: the highest id counts.
    spec = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    spec["model"]["vocab"]["late"] = 99
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    assert load_tokenizer(str(tmp_path)).vocab_size == 100


def test_a_transformers_tokenizer_of_stock_t5_becomes_lossless(
    real_tokenizer: TextTokenizer,
) -> None:
    from transformers import AutoTokenizer

    stock = AutoTokenizer.from_pretrained(REAL_TOKENIZER)
    assert tokenizer_of(stock).fingerprint == real_tokenizer.fingerprint


def test_a_folder_without_a_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"cannot be read; where: .*tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_broken_spiece_model_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"\xff\xfe no protobuf")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_crosses_a_process_boundary_with_its_settings(
    tiny_tokenizer: TextTokenizer,
) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(tiny_tokenizer))
    assert copy.encode_batch(["</s>"]) == tiny_tokenizer.encode_batch(["</s>"])
    assert copy.fingerprint == tiny_tokenizer.fingerprint


@pytest.mark.parametrize("text", ["Grüße", "ﬁ ²", "ｆｕｌｌ", "e\u0301"])
def test_only_nfkc_comes_between(real_tokenizer: TextTokenizer, text: str) -> None:
    decoded = real_tokenizer.decode(real_tokenizer.encode_batch([text])[0])
    assert decoded == unicodedata.normalize("NFKC", text)


def test_importing_the_tokenizer_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, pipeline.tokenizer; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
