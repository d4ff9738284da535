"""Tokenizers that are no T5's: no text gives a control id; what they lose is mended, or said."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PrepareConfig
from pipeline.conversation import Conversation, Role, Turn
from pipeline.prepare.encode.encoders import make_pair_encoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.stage import prepare
from pipeline.store.manifest import read_manifest
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from pipeline.tokenizer.vocabulary import NEW_PIECES
from tests.chat_models import mt5_like

CODE = "def f(x):\n\tif x < 2:\n\t    return {'a': `x` ^ ~x}\\n\n\n  # done\t\n"


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Of an mT5 whose embedding has rows for nine more pieces."""
    folder = tmp_path_factory.mktemp("spare")
    mt5_like(folder, spare=9)
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Of one whose embedding has not."""
    folder = tmp_path_factory.mktemp("full")
    mt5_like(folder, spare=3)
    return load_tokenizer(str(folder))


def stock(tokenizer: TextTokenizer, folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer.save(folder, model_max_length=64)
    return AutoTokenizer.from_pretrained(folder)


def test_an_mt5_with_spare_rows_loses_nothing(spare: TextTokenizer, tmp_path: Path) -> None:
    assert spare.is_lossless
    text = CODE + "ひらがな </div> <0x0A> <extra_id_3> 😀"
    (ids,) = spare.encode_batch([text])
    assert spare.decode(ids) == text
    auto = stock(spare, tmp_path)
    assert auto(text).input_ids == [*ids, spare.eos_id]
    assert auto.decode(ids) == text
    again = load_tokenizer(str(tmp_path))
    assert (again.fingerprint, again.is_lossless) == (spare.fingerprint, True)


def test_its_new_pieces_stand_behind_its_own(spare: TextTokenizer, full: TextTokenizer) -> None:
    own, vocabulary = full.backend.get_vocab(), spare.backend.get_vocab()
    new = [piece for piece in NEW_PIECES if piece not in own]
    assert {piece: i for piece, i in vocabulary.items() if piece not in own} == {
        piece: len(own) + i for i, piece in enumerate(new)
    }
    assert {piece: vocabulary[piece] for piece in own} == own


def test_a_t5_with_bytes_has_its_sentinels_before_them(tmp_path: Path) -> None:
    """As Japanese T5s do; T5Tokenizer gives them their sentinels."""
    pieces = mt5_like(tmp_path, spare=128)
    for name, change in (("config.json", {"model_type": "t5"}), ("tokenizer_config.json", {})):
        said = json.loads((tmp_path / name).read_text("utf-8")) | change
        said.pop("extra_ids", None)
        (tmp_path / name).write_text(json.dumps(said), "utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.is_lossless
    assert tokenizer.backend.token_to_id("<extra_id_0>") == pieces + 99
    assert tokenizer.backend.token_to_id("\n") == pieces + 100
    (ids,) = tokenizer.encode_batch([f"{CODE}<extra_id_0>"])
    assert tokenizer.decode(ids) == f"{CODE}<extra_id_0>"


PIECES = [
    *("</s>", "<pad>", "<unk>", "<0x41>", "<extra_id_5>", "＜/s＞", "</p>", "<", "a", "ひ", " "),
    *("\n", "\t", "▁", "### Human:", "\u0301", "😀", "x", "s>"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
@settings(deadline=None)
def test_no_text_gives_a_control_id(spare: TextTokenizer, full: TextTokenizer, text: str) -> None:
    for tokenizer in (spare, full):
        (ids,) = tokenizer.encode_batch([text])
        names = {tokenizer.backend.id_to_token(i) for i in ids}
        assert not names & {"</s>", "<pad>"}
        assert "A" in text or "<0x41>" not in names
        whole = tokenizer.backend.encode(text).ids
        assert whole == [*ids, tokenizer.eos_id]


@given(st.text(st.sampled_from("abxif0 .,:;()'#<>/{}^~`\\ひ\n\t"), max_size=40))
@settings(deadline=None)
def test_text_comes_back_to_the_letter(spare: TextTokenizer, text: str) -> None:
    (ids,) = spare.encode_batch([text])
    assert spare.decode(ids) == text
    lines = [line + "\n" for line in text.split("\n")]
    joined = [i for ids in spare.encode_batch(lines) for i in ids]
    assert joined == spare.encode_batch([text + "\n"])[0]


def test_other_texts_keep_their_ids(full: TextTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    mt5_like(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The sea, the <b>wind</b>", "x < 2 </p> & <pads>", "é ＜b＞"):
        assert full.encode_batch([text])[0] == plain(text).input_ids[:-1]
    assert plain("</s>").input_ids[:-1] != full.encode_batch(["</s>"])[0]
    auto = stock(full, tmp_path / "saved")
    assert auto("a </s> b").input_ids[:-1] == full.encode_batch(["a </s> b"])[0]


def test_its_rows_are_what_stock_transformers_renders(
    spare: TextTokenizer, full: TextTokenizer, tmp_path: Path
) -> None:
    turns = [Turn(Role.SYSTEM, "Be </s>."), Turn(Role.HUMAN, CODE), Turn(Role.ASSISTANT, CODE)]
    turns += [Turn(Role.HUMAN, "q\n"), Turn(Role.ASSISTANT, "a")]
    names = {Role.SYSTEM: "system", Role.HUMAN: "user", Role.ASSISTANT: "assistant"}
    for tokenizer in (spare, full):
        auto = stock(tokenizer, tmp_path / str(tokenizer.is_lossless))
        messages = [{"role": names[turn.role], "content": turn.text} for turn in turns[:3]]
        encoder = make_pair_encoder(tokenizer, 512, 512)
        (rows,) = encoder.encode([Conversation("x", turns)], PairCounts())
        messages.append({"role": "user", "content": "q\n"})
        ids = auto.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert rows.column("input_ids")[1].as_py() == [*ids, tokenizer.eos_id]


@pytest.mark.parametrize("kind", ["longt5", "switch_transformers", "t5"])
def test_others_with_t5s_vocabulary_get_the_lossless_tokenizer(
    kind: str, tiny_t5: Path, tmp_path: Path
) -> None:
    for name in ("spiece.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_t5 / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.fingerprint == load_tokenizer(str(tiny_t5)).fingerprint


ANSWERS = ["one line", "two\nlines", "a  b", "1\n\n2\t3", "one  \n"]


@pytest.mark.parametrize("spare_rows", [3, 9])
def test_what_a_tokenizer_loses_is_measured_and_said(
    spare_rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mt5_like(tmp_path / "model", ["one line two lines 123 ab q", *ANSWERS], spare=spare_rows)
    turns = [
        {"from": name, "value": t} for a in ANSWERS for name, t in (("human", "q"), ("gpt", a))
    ]
    data = tmp_path / "chats.json"
    data.write_text(json.dumps([{"id": "x", "conversations": turns}]), "utf-8")
    config = PrepareConfig(
        data_path=str(data), model_name_or_path=str(tmp_path / "model"), num_workers=1,
        output_dir=str(tmp_path / "processed"),
    )  # fmt: skip
    reasons = read_manifest(Path(prepare(config))).counts["reasons"]
    lost = {name: n for name, n in reasons.items() if name.startswith("lost_")}
    assert lost == ({"lost_newlines": 3, "lost_spaces": 3} if spare_rows == 3 else {})
    line = "of 5 answers, the tokenizer of model loses line ends in 3, runs of spaces or tabs in 3"
    assert (line in capsys.readouterr().err) == (spare_rows == 3)
