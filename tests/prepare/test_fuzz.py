"""Any records at all: no traceback, all of them counted, and the rows of a plain reading.

Six hundred lists of records with every run of the tests, always the same; ``just fuzz 100000``
for as many others as one likes. What once failed stands in ``CRASHES``.
"""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.conversation import Conversation
from pipeline.prepare.encode.encoders import PairEncoder, make_pair_encoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.prepare.files.elements import DECODER
from pipeline.prepare.read.joining import join_parts
from pipeline.prepare.read.records import RecordCounts, parse_record, roles_with
from pipeline.prepare.read.values import RejectedError
from pipeline.store.fingerprint import turns_digest
from pipeline.tokenizer import TextTokenizer
from tests import forms, plain_reading

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
LENGTH, TARGET = 96, 40  # so short that all is cut that can be

VARIANTS = 9  # of each list of records that hypothesis draws

fuzz = settings(
    max_examples=math.ceil(EXAMPLES / (1 + VARIANTS)) or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate) if EXAMPLES else tuple(Phase),
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Read:
    """What the program makes of some records."""

    rows: list[dict[str, Any]]
    counts: dict[str, int]
    reasons: dict[str, int]
    answers_with_unknown: int


def read(texts: list[str], encoder: PairEncoder) -> Read:
    """Read records as ``prepare`` does, but for files, workers and folders."""
    roles, records, rejections = roles_with({}), list[Conversation](), Counter[str]()
    noted = RecordCounts()
    for text in texts:
        try:
            records.append(parse_record(DECODER.decode(text), roles, noted))
        except RejectedError as error:
            assert error.detail
            rejections[error.reason] += 1
    assert sum(noted.forms.values()) <= len(records)
    whole = [c for c in join_parts(records) if isinstance(c, Conversation)]
    first: dict[bytes, Conversation] = {}
    for conversation in whole:
        first.setdefault(turns_digest(conversation.turns, conversation.tools), conversation)
    kept = list(first.values())
    counts = PairCounts()
    batches = list(encoder.encode(kept, counts))
    rows = pa.Table.from_batches(batches, encoder.schema).to_pylist()
    numbers = {
        "records": len(texts),
        "rejected": rejections.total(),
        "joined": len(records) - len(whole),
        "conversations": len(kept),
        "pairs": len(rows),
    }
    reasons = counts.reasons + Counter({"duplicate": len(whole) - len(kept)})
    return Read(rows, numbers, dict(+reasons), counts.answers_with_unknown)


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: TextTokenizer) -> PairEncoder:
    return make_pair_encoder(tiny_tokenizer, LENGTH, TARGET)


@pytest.fixture(scope="module")
def auto(tiny_tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save(folder, model_max_length=LENGTH)
    return AutoTokenizer.from_pretrained(folder)


def check(records: list[Any], encoder: PairEncoder, auto: Any) -> None:
    texts = [json.dumps(record) for record in records]
    found = read(texts, encoder)
    expected = plain_reading.read(
        [json.loads(text) for text in texts], plain_reading.PlainEncoder(auto, LENGTH, TARGET)
    )
    assert found.rows == expected.rows
    assert found.counts == expected.counts
    assert found.reasons == expected.reasons
    counted = [found.counts[name] for name in ("rejected", "joined", "conversations")]
    assert sum(counted) + found.reasons.get("duplicate", 0) == found.counts["records"]


@fuzz
@given(records=forms.RECORDS, seed=st.integers(0, 1 << 32))
def test_any_records_give_the_rows_and_counts_of_a_plain_reading(
    encoder: PairEncoder, auto: Any, records: list[Any], seed: int
) -> None:
    for one in (records, *forms.variants(records, seed, VARIANTS)):
        try:
            check(one, encoder, auto)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} on {json.dumps(one)}") from error


THOUGHT = {"author": {"role": "assistant"}, "content": {"content_type": "thoughts"}}
CRASHES: list[list[Any]] = [
    # A system text beside nothing but thoughts was a conversation of one system turn.
    [{"system": "x", "mapping": {"0": {"message": THOUGHT, "parent": None}}, "current_node": "0"}],
    # Not the same to the two readings at first.
    [{"system": "x", "mapping": {"0": {"message": None, "parent": None}}, "current_node": "0"}],
    [[{"from": "AI", "value": "a", "tool_calls": {}, "function_call": None}]],
    [{"tools": 0, "messages": [{"from": "AI", "value": "a"}]}],
]
"""Records that once failed, each with all that was in the input."""


@pytest.mark.parametrize("records", CRASHES)
def test_what_once_failed(encoder: PairEncoder, auto: Any, records: list[Any]) -> None:
    check(records, encoder, auto)
