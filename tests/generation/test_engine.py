"""The core: what stock transformers writes, alone and in any batch, for both engines."""

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.errors import ConfigError
from pipeline.generation.config import ChatConfig, GenerationOptions
from pipeline.generation.engine.answer import Answer, Result, Sampling
from pipeline.generation.engine.ctranslate2_decoder import CTranslate2Decoder
from pipeline.generation.engine.decoder import Decoder
from pipeline.generation.engine.sampling import keep_likeliest, next_ids
from pipeline.generation.engine.scheduler import Engine, QueueFullError
from pipeline.generation.engine.text import TextStream
from pipeline.generation.engine.transformers_decoder import TransformersDecoder
from pipeline.generation.model import open_model
from pipeline.tokenizer import TextTokenizer

LENGTH = 24
EOS = frozenset([1])


@pytest.fixture
def engine_of(tokenizer: TextTokenizer) -> Iterator[Callable[..., Engine]]:
    """Return a function that starts an engine."""
    started: list[Engine] = []

    def start(decoder: Decoder, **options: Any) -> Engine:
        engine = Engine(decoder, tokenizer, eos_ids=EOS, **options)
        started.append(engine.__enter__())
        return engine

    yield start
    for engine in started:
        engine.close()


def decoder_of(model: Any, rows: int = 64, tokens: int = 1 << 20) -> TransformersDecoder:
    return TransformersDecoder(model, max_rows=rows, max_tokens=tokens)


def answers_of(engine: Engine, sources: Sequence[list[int]], **settings: Any) -> list[Result]:
    sampling = Sampling(**{"max_new_tokens": LENGTH, **settings})
    return [answer.result() for answer in [engine.submit(s, sampling) for s in sources]]


def stock(model: Any, tokenizer: TextTokenizer, source: list[int], **settings: Any) -> Result:
    """What transformers' own generate writes for one source."""
    settings = {"max_new_tokens": LENGTH, "num_beams": 1, "do_sample": False, **settings}
    ids = model.generate(torch.tensor([source]), **settings)[0, 1:].tolist()
    reason: Any = "stop" if 1 in ids else "length"
    return Result(text=tokenizer.decode(ids), finish_reason=reason, num_tokens=len(ids))


@pytest.fixture(scope="module")
def greedy(plain_model: Any, tokenizer: TextTokenizer, sources: list[list[int]]) -> list[Result]:
    """What transformers' own generate writes for all sources."""
    return [stock(plain_model, tokenizer, source) for source in sources]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.3},
        {"num_beams": 3},
        {"num_beams": 2, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_answers_are_those_of_stock_transformers_in_any_batch(
    settings: dict[str, Any],
    plain_model: Any,
    tokenizer: TextTokenizer,
    sources: list[list[int]],
    greedy: list[Result],
    engine_of: Callable[..., Engine],
) -> None:
    """One at a time; three, with others joining and leaving between steps; all at once."""
    sources = sources[::6] if settings else sources
    expected = (
        [stock(plain_model, tokenizer, source, **settings) for source in sources]
        if settings
        else greedy
    )
    for rows in (1, 3, 64):
        engine = engine_of(decoder_of(plain_model, rows))
        got = answers_of(engine, sources, **settings)
        assert [(r.text, r.finish_reason) for r in got] == [
            (r.text, r.finish_reason) for r in expected
        ]
    if not settings:
        assert len({r.text for r in expected}) > 20
        assert {r.finish_reason for r in expected} == {"stop", "length"}
        assert {r.num_tokens for r in got} == {r.num_tokens for r in expected}


def test_ctranslate2_writes_the_same(
    trained: Path, sources: list[list[int]], greedy: list[Result]
) -> None:
    """From the folder itself, exported once and kept; and from the export."""
    pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    expected = greedy
    model = open_model(trained, GenerationOptions(engine="ctranslate2"))
    with model.engine() as engine:
        assert answers_of(engine, sources) == expected
    (exported,) = trained.glob("ctranslate2-*")
    before = (exported / "model.bin").stat().st_mtime_ns
    again = open_model(trained, GenerationOptions(engine="ctranslate2"))
    with again.engine() as engine:
        assert answers_of(engine, sources[:3]) == expected[:3]
        assert len(answers_of(engine, sources[:3], num_beams=2)) == 3
        cancelled = cancelled_at_its_first_word(engine, sources[0])
        assert cancelled.finish_reason == "cancelled" and len(cancelled.ids) < 12
        whole = expected[1].text
        (stopped,) = answers_of(engine, sources[1:2], stop=(whole[7:10],))
        assert stopped.text == whole[: whole.index(whole[7:10])]
    assert (exported / "model.bin").stat().st_mtime_ns == before
    with open_model(exported, GenerationOptions()).engine() as engine:
        assert answers_of(engine, sources[:3]) == expected[:3]


def cancelled_at_its_first_word(engine: Engine, source: list[int]) -> Answer:
    """Cancel an answer before its second word can be written."""
    submitted, ended = threading.Event(), threading.Event()
    answers: list[Answer] = []

    def listen(piece: str | BaseException | None) -> None:
        submitted.wait()
        answers[0].cancel()
        if piece is None:
            ended.set()

    answers.append(engine.submit(source, Sampling(max_new_tokens=LENGTH), listen))
    submitted.set()
    assert ended.wait(60)
    return answers[0]


def test_a_thread_of_ctranslate2_never_holds_the_translator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    """Its threads drop the callback last: one that held the translator would join itself."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="no extra ctranslate2")
    callbacks: list[Any] = []

    class Translator:
        def translate_batch(self, sources: Any, *, callback: Any, **_: Any) -> list[Any]:
            callbacks.append(callback)
            hypotheses = SimpleNamespace(hypotheses=[["a", "</s>"]])
            return [SimpleNamespace(done=lambda: True, result=lambda: hypotheses) for _ in sources]

    monkeypatch.setattr(ctranslate2, "Translator", lambda *_, **__: Translator())
    (tmp_path / "shared_vocabulary.json").write_text('["<pad>", "</s>", "a"]', "utf-8")
    decoder = CTranslate2Decoder(
        tmp_path, device="cpu", compute_type="float32", max_rows=2, max_tokens=99
    )
    answer = Answer([2, 1], Sampling(max_new_tokens=4), tokenizer, EOS)
    held = weakref.ref(decoder._translator), weakref.ref(answer)
    decoder.admit([answer])
    decoder.step()
    assert answer.finish_reason == "stop" and decoder.running == []
    del decoder, answer
    assert len(callbacks) == 1 and [ref() for ref in held] == [None, None]


def test_a_seed_decides_an_answer_alone_and_in_any_batch(
    plain_model: Any, sources: list[list[int]], engine_of: Callable[..., Engine]
) -> None:
    settings = [
        {"temperature": 1.0},
        {"temperature": 2.0, "top_p": 0.8},
        {"temperature": 2.0, "top_k": 5, "repetition_penalty": 1.5},
    ]
    wanted = [
        (source, Sampling(max_new_tokens=12, seed=i, **settings[i % 3]))
        for i, source in enumerate(sources)
    ]
    results = []
    for rows in (1, 5, 64):
        engine = engine_of(decoder_of(plain_model, rows))
        answers = [engine.submit(*each) for each in wanted]
        results.append([answer.result() for answer in answers])
    assert results[0] == results[1] == results[2]
    engine = engine_of(decoder_of(plain_model))
    hot = {"max_new_tokens": 12, "temperature": 2.0}
    texts = [engine.submit(sources[0], Sampling(seed=s, **hot)).result().text for s in range(8)]  # type: ignore[arg-type]
    assert len(set(texts)) > 4


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 0.5), (0.7, 7, 1.0), (1.5, 40, 0.9), (3.0, 0, 0.97)],
)
def test_the_filters_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float, tokenizer: TextTokenizer
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 1500) * 3
    scores = TemperatureLogitsWarper(temperature)(None, logits)  # type: ignore[arg-type]
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)  # type: ignore[arg-type]
    expected = (
        TopPLogitsWarper(top_p)(None, scores).softmax(-1) if top_p < 1 else scores.softmax(-1)
    )  # type: ignore[arg-type]
    sampling = Sampling(max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    other = Sampling(max_new_tokens=1, temperature=temperature, top_k=3, top_p=0.2)
    answers = [
        Answer([1], s, tokenizer, EOS)
        for s in itertools.islice(itertools.cycle([sampling, other]), 6)
    ]
    kept, ids = keep_likeliest((logits / temperature).softmax(-1), answers)
    for row in (0, 2, 4):
        mine = torch.zeros(1500).scatter_(0, ids[row], kept[row] / kept[row].sum())
        torch.testing.assert_close(mine, expected[row], rtol=1e-4, atol=1e-7)


def test_draws_follow_the_probabilities(tokenizer: TextTokenizer) -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    hot = Sampling(max_new_tokens=1, temperature=1.0)
    answers = [
        Answer([1], Sampling(max_new_tokens=1, temperature=1.0, seed=i), tokenizer, EOS)
        for i in range(4000)
    ]
    assert hot.top_p == 1.0
    counts = torch.tensor(next_ids(logits.repeat(4000, 1), answers, 0)).bincount(minlength=4) / 4000
    torch.testing.assert_close(counts, logits.exp(), rtol=0, atol=0.03)


def test_the_penalty_is_that_of_transformers(tokenizer: TextTokenizer) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 50)
    answer = Answer([1], Sampling(max_new_tokens=9, repetition_penalty=1.7), tokenizer, EOS)
    answer.ids = [3, 9, 3]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[0, 3, 9, 3]]), logits.clone())
    next_ids(logits, [answer], 0)
    torch.testing.assert_close(logits, expected)


def test_pieces_are_the_answer(
    plain_model: Any, sources: list[list[int]], engine_of: Callable[..., Engine]
) -> None:
    engine = engine_of(decoder_of(plain_model))
    for source in sources[:6]:
        answer = engine.submit(source, Sampling(max_new_tokens=LENGTH))
        pieces = list(answer)
        assert "".join(pieces) == answer.as_result().text
        assert len(pieces) > 1


def test_an_answer_ends_before_a_stop_string(
    plain_model: Any,
    tokenizer: TextTokenizer,
    sources: list[list[int]],
    engine_of: Callable[..., Engine],
) -> None:
    engine = engine_of(decoder_of(plain_model))
    (whole,) = answers_of(engine, sources[1:2])
    stop = whole.text[7:10]
    before = whole.text[: whole.text.index(stop)]
    answer = engine.submit(sources[1], Sampling(max_new_tokens=LENGTH, stop=("nowhere", stop)))
    assert "".join(answer) == before, "nothing of it was told before it was known"
    assert answer.as_result().finish_reason == "stop"
    assert answer.as_result().num_tokens < whole.num_tokens


@pytest.mark.parametrize(
    ("text", "stop"),
    [("a  b\n\n\tx {y}\n", ()), ("one two three", ("two",)), ("ab###c", ("###d", "#c", "b##")),
     ("  lead", ()), ("tail ", ("tail  ",))],
)  # fmt: skip
def test_a_stream_of_text(text: str, stop: tuple[str, ...], tokenizer: TextTokenizer) -> None:
    stream = TextStream(tokenizer, stop)
    (ids,) = tokenizer.encode_batch([text])
    told = "".join(stream.add(token) for token in ids) + stream.close()
    ends = [text.index(s) for s in stop if s in text]
    assert told == stream.text == text[: min(ends, default=len(text))]
    assert stream.is_stopped == bool(ends)


def test_a_cancelled_request_frees_its_place(
    plain_model: Any, sources: list[list[int]], engine_of: Callable[..., Engine]
) -> None:
    """Two rows: both taken for a very long time, until one who waits gets a place."""
    engine = engine_of(decoder_of(plain_model, rows=2))
    longest = Sampling(max_new_tokens=100_000)
    endless = (
        s
        for s in sources
        if engine.submit(s, Sampling(max_new_tokens=60)).result().finish_reason == "length"
    )
    running = [engine.submit(source, longest) for source in list(itertools.islice(endless, 2))]
    waiting = engine.submit(sources[0], Sampling(max_new_tokens=4))
    given_up = engine.submit(sources[1], longest)
    given_up.cancel()
    assert next(iter(running[0])) is not None
    assert engine.num_waiting > 0 and waiting.finish_reason is None
    running[1].cancel()
    assert waiting.result().num_tokens <= 4
    assert running[1].result().finish_reason == given_up.result().finish_reason == "cancelled"
    assert running[0].finish_reason is None, "the other goes on"
    running[0].cancel()
    running[0].result()
    _until(lambda: engine.num_running == engine.num_waiting == 0)


def test_what_waits_is_bounded_and_closing_ends_all(
    plain_model: Any, sources: list[list[int]], engine_of: Callable[..., Engine]
) -> None:
    engine = engine_of(decoder_of(plain_model, rows=1), max_waiting=2)
    first = engine.submit(sources[1], Sampling(max_new_tokens=100_000))  # which has no end
    next(iter(first))
    others = [engine.submit(sources[1], Sampling(max_new_tokens=2)) for _ in range(2)]
    with pytest.raises(QueueFullError):
        engine.submit(sources[2], Sampling(max_new_tokens=2))
    engine.close()
    assert {answer.result().finish_reason for answer in (first, *others)} == {"cancelled"}
    with pytest.raises(QueueFullError):
        engine.submit(sources[2], Sampling(max_new_tokens=2))


def test_memory_is_bounded_whatever_is_asked(
    plain_model: Any, sources: list[list[int]], engine_of: Callable[..., Engine]
) -> None:
    decoder = decoder_of(plain_model, tokens=400)
    engine = engine_of(decoder)
    with pytest.raises(ConfigError, match="--max-new-tokens"):
        engine.submit(sources[0], Sampling(max_new_tokens=400))
    seen = []
    real = decoder.step

    def step() -> None:
        rows = decoder.running
        seen.append(len(rows) * (max(len(a.source) for a in rows) + LENGTH))
        real()

    decoder.step = step  # type: ignore[method-assign]
    assert len(answers_of(engine, sources)) == len(sources)
    assert max(seen) <= 400 and max(seen) > 200


def test_an_error_reaches_those_who_wait_and_the_engine_lives(
    plain_model: Any, sources: list[list[int]], engine_of: Callable[..., Engine]
) -> None:
    decoder = decoder_of(plain_model)
    real = plain_model.get_encoder
    engine = engine_of(decoder)
    plain_model.get_encoder = lambda: (_ for _ in ()).throw(RuntimeError("out of memory"))
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.submit(sources[0], Sampling(max_new_tokens=4)).result()
    finally:
        plain_model.get_encoder = real
    assert engine.submit(sources[0], Sampling(max_new_tokens=4)).result().num_tokens > 0


def test_many_threads_at_once(
    plain_model: Any, sources: list[list[int]], engine_of: Callable[..., Engine]
) -> None:
    engine = engine_of(decoder_of(plain_model, rows=8))
    expected = answers_of(engine, sources)
    got: dict[int, Result] = {}

    def ask(i: int) -> None:
        got[i] = engine.submit(sources[i % 30], Sampling(max_new_tokens=LENGTH)).result()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(60)] == expected * 2


def test_a_model_of_absolute_positions(sources: list[list[int]], tokenizer: TextTokenizer) -> None:
    """BART: rows leave a batch, and none joins it."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    settings = BartConfig(
        vocab_size=1024, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=256, init_std=0.5, bos_token_id=0, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=2, forced_bos_token_id=5, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(settings).eval()
    model.generation_config.forced_eos_token_id = None
    expected = [stock(model, tokenizer, source).text for source in sources[:9]]
    with Engine(decoder_of(model, 4), tokenizer, eos_ids=EOS) as engine:
        assert [r.text for r in answers_of(engine, sources[:9])] == expected
    assert len(set(expected)) > 3


def test_answers_are_as_long_as_those_of_the_training(trained: Path, tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "out"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("ctranslate2-*"))
    options = ChatConfig(model=str(folder))
    assert open_model(folder, options).sampling(options).max_new_tokens == 200
    run = {"prepared": {"config": {"max_target_length": 33}}}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    assert open_model(folder, options).sampling(options).max_new_tokens == 33
    options = ChatConfig(model=str(folder), max_new_tokens=5)
    assert open_model(folder, options).sampling(options).max_new_tokens == 5


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
