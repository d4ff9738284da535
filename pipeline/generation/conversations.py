"""Files to conversations, a record at a time, with the records that they were: no more, no less.

Unlike in ``prepare``, parts are not joined and repeats not left out: each record gets its answer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import PrepareOptions
from pipeline.conversation import ROLES_BY_NAME, Conversation, Role
from pipeline.prepare.files.elements import NumberText
from pipeline.prepare.files.json_values import Fault
from pipeline.prepare.files.reading import DataFile, read_files
from pipeline.prepare.read.records import RecordCounts, parse_record, roles_with
from pipeline.prepare.read.values import RejectedError


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """A record of a file."""

    place: str
    """The file's name and the record's position in it, counted from 0."""
    fields: dict[str, Any]
    """What stands in it; a record that is a list of turns has them under ``conversations``."""
    conversation: Conversation | None
    reason: str = ""
    """Why it is no conversation, where it is none."""


def read_conversations(
    files: Iterable[DataFile], roles: Mapping[str, Role] = ROLES_BY_NAME
) -> Iterator[ReadRecord]:
    """Yield the records of some files, in order.

    Args:
        files: What ``find_files`` found.
        roles: Speaker names, in lower case.

    Raises:
        InputError: A file cannot be read.
    """
    for source, found in read_files(files):
        place = f"{source.name}, record {found.position}"
        try:
            if isinstance(found, Fault):
                raise RejectedError(found.reason, found.detail)
            conversation = parse_record(found.value, roles, RecordCounts())
        except RejectedError as error:
            yield ReadRecord(place, {}, None, str(error))
            continue
        fields = plain_json(found.value)
        yield ReadRecord(
            place,
            fields if isinstance(fields, dict) else {"conversations": fields},
            conversation,
        )


def roles_of(role: Sequence[str]) -> Mapping[str, Role]:
    """Return the speaker names with those that ``--role NAME=ROLE`` adds.

    Raises:
        ConfigError: One is no role.
    """
    return roles_with(PrepareOptions(role=tuple(role)).extra_roles())


def plain_json(value: Any) -> Any:
    """Return a value as ``json.dumps`` takes it, with numbers as numbers again.

    >>> plain_json({"a": [NumberText("1.50"), "1"], "b": NumberText("1e999")})
    {'a': [1.5, '1'], 'b': '1e999'}
    """
    if isinstance(value, dict):
        return {key: plain_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(inner) for inner in value]
    if isinstance(value, NumberText):
        return _number(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    # Of Parquet: dates, bytes, and floats that JSON does not have.
    return value if isinstance(value, float) and _is_finite(value) else str(value)


def _number(text: str) -> int | float | str:
    try:
        return int(text)
    except ValueError:
        number = float(text)
    return number if _is_finite(number) else str(text)


def _is_finite(number: float) -> bool:
    return number - number == 0
