"""How fast answers are written: one at a time, in plain batches, by the engine, by CTranslate2.

    just bench generation MODEL DATA [--questions 200] [--max-new-tokens 64] [--rounds 2]

MODEL is a trained folder, DATA a ShareGPT export. The ways take turns, a part of the questions at
a time, so that a machine busy elsewhere is as busy for each. Answers of a random model never
end by themselves, so each question has a length of its own, from an eighth of the most to the most.

    one at a time   transformers' generate, a question a call
    batches of 16   transformers' generate, questions as they come: padded, until the longest ends
    engine          what duet generate does
    ctranslate2     the same with --engine ctranslate2
"""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.fit.model.loading import load_trained
from pipeline.generation.config import GenerateConfig
from pipeline.generation.engine.answer import Sampling
from pipeline.generation.generate import questions
from pipeline.generation.model import TrainedModel, open_model
from pipeline.prepare.files.reading import find_files

Asked = Sequence[tuple[list[int], int]]
"""Encoder ids, and the most tokens of the answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()

    config = GenerateConfig(model=str(args.model), data_path=str(args.data), output_path="unused")
    engine = open_model(args.model, config)
    exported = open_model(
        args.model, GenerateConfig(model=str(args.model), data_path=str(args.data),
                                   output_path="unused", engine="ctranslate2")
    )  # fmt: skip
    plain = load_trained(args.model).eval()
    asked = choose(config, engine, args.questions, args.max_new_tokens)
    ways: dict[str, Callable[[Asked], None]] = {
        "one at a time": lambda some: plain_batches(plain, some, 1),
        "batches of 16": lambda some: plain_batches(plain, some, 16),
        "engine": lambda some: with_engine(engine, some),
        "ctranslate2": lambda some: with_engine(exported, some),
    }
    seconds: defaultdict[str, float] = defaultdict(float)
    busy: defaultdict[str, float] = defaultdict(float)
    for turn in range(args.rounds):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            way(asked[turn :: args.rounds])
            seconds[name] += time.perf_counter() - start
            busy[name] += time.process_time() - used
    tokens = sum(length for _, length in asked)
    sizes = sorted(len(ids) for ids, _ in asked)
    print(f"{len(asked)} questions of {sizes[0]} to {sizes[-1]} tokens, {tokens} tokens of answers")
    for name, taken in seconds.items():
        times = [each["one at a time"] / each[name] for each in (seconds, busy)]
        print(
            f"{name:14} {taken:7.1f} s  {tokens / taken:7.0f} tokens/s  {times[0]:5.2f} x   "
            f"processor {busy[name]:7.1f} s  {times[1]:5.2f} x"
        )


def choose(config: GenerateConfig, model: TrainedModel, count: int, most: int) -> Asked:
    """Take every so many-th question, in the order of the file."""
    drawn = random.Random(0)
    found = []
    for question in questions(config, find_files(config.data_path)):
        if question.index % 5 == 0:
            length = drawn.randint(max(most // 8, 1), most)
            found.append((model.source.ids(question.conversation), length))
        if len(found) == count:
            break
    return found


def plain_batches(model: Any, asked: Asked, rows: int) -> None:
    for start in range(0, len(asked), rows):
        some = asked[start : start + rows]
        sources = [torch.tensor(ids) for ids, _ in some]
        ids = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True)
        masks = [torch.ones_like(source) for source in sources]
        mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
        length = max(length for _, length in some)
        model.generate(
            ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=length
        )


def with_engine(model: TrainedModel, asked: Asked) -> None:
    with model.engine() as engine:
        answers = [engine.submit(ids, Sampling(max_new_tokens=length)) for ids, length in asked]
        for answer in answers:
            answer.result()


if __name__ == "__main__":
    main()
