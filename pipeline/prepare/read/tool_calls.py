"""The tool calls of an assistant's turn to lines of JSON, one each."""

import contextlib
from typing import Any

from pipeline.prepare.files.elements import DECODER
from pipeline.prepare.read.values import is_text, json_line, kind_of, parsed, wrong_shape

CALL_KEYS = ("tool_calls", "function_call")


def tool_call_lines(message: dict[str, Any], i: int, read: set[str]) -> list[str]:
    """Return one line for each call of a turn.

    Args:
        message: The turn.
        i: Its index, for messages.
        read: Takes the keys that were read.

    Raises:
        RejectedError: A call is of a wrong shape.
    """
    if message.get("tool_calls") is None and message.get("function_call") is None:
        return []
    read.update(CALL_KEYS)
    calls = parsed(message.get("tool_calls"), f'"tool_calls" of turn {i}')
    if calls is not None and not isinstance(calls, list):
        raise wrong_shape(f'"tool_calls" of turn {i} is a list, not {kind_of(calls)}')
    calls = list(calls or [])
    if message.get("function_call") is not None:
        calls.append(message["function_call"])
    return [_line(call, i) for call in calls]


def _line(call: Any, i: int) -> str:
    function = call.get("function", call) if isinstance(call, dict) else None
    if function is None and isinstance(call, dict):  # a table has null for what it lacks
        function = call
    if not isinstance(function, dict) or not is_text(function.get("name")):
        raise wrong_shape(f"a tool call of turn {i} has no name")
    arguments = function.get("arguments")
    if is_text(arguments):
        with contextlib.suppress(ValueError, RecursionError):  # else it stays a string
            arguments = DECODER.decode(arguments)
    return json_line({"name": function["name"], "arguments": arguments}, f"a call of turn {i}")
