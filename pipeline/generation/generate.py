"""``duet generate``: the answers of a trained model to many conversations, in their order.

Records -> conversations that end with a question -> ids -> the engine, some hundred at a time, so
that it can put those of like length together -> the journal -> one file.
"""

import hashlib
import queue
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.console.logs import note
from pipeline.console.units import counted
from pipeline.conversation import Conversation, Role
from pipeline.errors import InputError
from pipeline.generation.config import GenerateConfig
from pipeline.generation.conversations import read_conversations, roles_of
from pipeline.generation.engine.answer import Answer
from pipeline.generation.engine.scheduler import Engine
from pipeline.generation.journal import Journal, Request
from pipeline.generation.model import TrainedModel, name_of_model, open_model
from pipeline.generation.progress import AnswerProgress
from pipeline.prepare.files.reading import DataFile, find_files

_IN_FLIGHT = 512
"""Questions that are waiting or being answered: enough to find some of like length."""


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation up to a human turn."""

    index: int
    """Its place among all questions."""
    fields: dict[str, Any]
    """Of the record, and ``turn`` where every human turn is answered."""
    conversation: Conversation


def generate(config: GenerateConfig) -> Path:
    """Answer conversations; resume where a run of the same settings was stopped.

    Returns:
        ``config.output_path``.

    Raises:
        InputError: A path is missing, or no record holds a question.
        OutputError: The output is there already and holds something else, or cannot be written.
        ModelError: The model cannot be loaded.
    """
    output = Path(config.output_path)
    files = find_files(config.data_path)
    journal = Journal(output, _request(config, files))
    if journal.is_complete:
        return output
    total = _count(config, files)
    with journal:
        if len(journal):
            note(f"resuming: {len(journal):,} of {total:,} answers are done")
        if len(journal) < total:
            model = open_model(Path(config.model), config)
            with model.engine() as engine:
                _answer_all(config, questions(config, files), model, engine, journal, total)
        journal.publish()
    return output


def _request(config: GenerateConfig, files: Sequence[DataFile]) -> Request:
    """Return what decides the answers; no path and no time."""
    content = hashlib.sha256()
    for source, _ in files:
        with source.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                content.update(chunk)
        content.update(b"\0")
    names = ("temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "seed", "engine")
    return {
        "model": name_of_model(Path(config.model)),
        "input": content.hexdigest(),
        "all_turns": config.all_turns,
        "role": list(config.role),
        "max_new_tokens": config.max_new_tokens,
        "stop": list(config.stop),
        "bf16": config.bf16,
    } | {name: getattr(config, name) for name in names}


def _count(config: GenerateConfig, files: Sequence[DataFile]) -> int:
    """Return the number of questions; say what holds none.

    Raises:
        InputError: There is no question at all.
    """
    left_out = Counter[str]()
    total = sum(1 for _ in questions(config, files, left_out))
    if left_out:
        reasons = ", ".join(f"{name} {count:,}" for name, count in left_out.most_common())
        note(f"no answer for {counted(left_out.total(), 'record')}: {reasons}")
    if not total:
        raise InputError(
            "no conversation with a question",
            where=", ".join(config.data_path),
            got=", ".join(left_out) or "no records",
            do="give ShareGPT records with a human turn; for other speaker names see --role",
        )
    return total


def questions(
    config: GenerateConfig, files: Sequence[DataFile], left_out: Counter[str] | None = None
) -> Iterator[Question]:
    """Yield what is to be answered, in the order of the input.

    Args:
        config: The settings.
        files: The input.
        left_out: Records without a question are counted here, by reason.
    """
    index, left_out = 0, Counter[str]() if left_out is None else left_out
    for record in read_conversations(files, roles_of(config.role)):
        if record.conversation is None:
            left_out[record.reason.partition(":")[0]] += 1
            continue
        turns = record.conversation.turns
        humans = [i for i, turn in enumerate(turns) if turn.role is Role.HUMAN]
        if not humans:
            left_out["no_question"] += 1
        for at in humans if config.all_turns else humans[-1:]:
            fields = record.fields | ({"turn": at + 1} if config.all_turns else {})
            yield Question(index, fields, replace(record.conversation, turns=turns[: at + 1]))
            index += 1


def _answer_all(
    config: GenerateConfig,
    asking: Iterable[Question],
    model: TrainedModel,
    engine: Engine,
    journal: Journal,
    total: int,
) -> None:
    asked: dict[int, tuple[Question, Answer]] = {}
    finished: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()

    def take_one(progress: AnswerProgress) -> None:
        index, error = finished.get()
        if error is not None:
            raise error
        question, answer = asked.pop(index)
        result = answer.as_result()
        journal.write(
            index,
            question.fields | {"generated": result.text, "finish_reason": result.finish_reason},
        )
        progress.add(result.num_tokens)

    with AnswerProgress(total, start=len(journal)) as progress:
        for question in asking:
            if question.index in journal:
                continue

            def listen(piece: str | BaseException | None, index: int = question.index) -> None:
                if not isinstance(piece, str):
                    finished.put((index, piece))

            answer = engine.submit(
                model.source.ids(question.conversation),
                model.sampling(config, seed=config.seed + question.index),
                listen,
            )
            asked[question.index] = (question, answer)
            while len(asked) >= _IN_FLIGHT:
                take_one(progress)
        while asked:
            take_one(progress)
