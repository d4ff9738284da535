"""Settings -> a commented YAML file that sets them again, and the JSON Schema of such files.

``--write-config`` writes one; ``prepare``, ``fit`` and ``train`` leave one beside their result.
"""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.fields import key_of_field, required_first
from pipeline.config.kinds import Kind, kinds_of

FILENAME = "config.yaml"
"""Beside a result: the settings that made it."""
_WIDTH = 96
_JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def run_file_text(
    command: str, config_class: type[Any], values: Mapping[str, Any], name: str = FILENAME
) -> str:
    """Return a file of settings: each key with its help and its value.

    Args:
        command: Whose settings they are.
        config_class: Its settings class.
        values: By field name; of a field that is not there, the default is written. Secrets are
            left out.
        name: Of the file.
    """
    lines = [
        f"# Settings of duet {command}. Run them with: duet {command} --config {name}",
        "# Flags on the command line win over this file. null is the default.",
        "# Relative paths start at the folder that duet is run in.",
        *_lines(config_class, values),
    ]
    return "\n".join(lines) + "\n"


def run_file_of(command: str, config: Any) -> str:
    """Return the file of the settings that a command runs with: see ``run_file_text``."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return run_file_text(command, type(config), values)


def _lines(config_class: type[Any], values: Mapping[str, Any]) -> Iterator[str]:
    kinds = kinds_of(config_class)
    for f in required_first(config_class):
        if f.metadata["secret"]:
            continue
        required = f.default is dataclasses.MISSING
        value = values.get(f.name, None if required else f.default)
        is_missing = required and value in (None, (), [], "")
        yield ""
        for line in textwrap.wrap(_comment(f.metadata["help"], kinds[f.name]), _WIDTH):
            yield f"# {line}"
        text = _entry(key_of_field(f.name), None if is_missing else value)
        yield text + ("  # required" if is_missing else "")


def _comment(text: str, kind: Kind) -> str:
    """Return a field's help, with its choices where it does not name them.

    >>> _comment("The split to show.", Kind(str, ("train", "eval")))
    'The split to show. One of: train, eval.'
    """
    if all(choice in text for choice in kind.choices):
        return text
    return f"{text} One of: {', '.join(kind.choices)}."


def _entry(key: str, value: Any) -> str:
    """Return a key with its value, as YAML.

    >>> print(_entry("learning-rate", 5e-5), _entry("data-path", ("a b.json", "no")), sep="; ")
    learning-rate: 5.0e-05; data-path:
    - a b.json
    - 'no'
    """
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump({key: plain}, allow_unicode=True, width=1 << 30)
    return text.rstrip("\n")


def json_schema(command: str, config_class: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a command's files of settings."""
    kinds = kinds_of(config_class)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Settings of duet {command}",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            key_of_field(f.name): _property(f, kinds[f.name])
            for f in dataclasses.fields(config_class)
            if not f.metadata["secret"]
        },
    }


def _property(f: "dataclasses.Field[Any]", kind: Kind) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": f.metadata["help"]}
    if f.default is not dataclasses.MISSING:
        schema["default"] = list(f.default) if isinstance(f.default, tuple) else f.default
    if kind.choices:
        schema["enum"] = [*kind.choices, None]
    elif kind.is_list:
        item = {"type": _JSON_TYPES[kind.base]}
        schema["anyOf"] = [item, {"type": "array", "items": item}, {"type": "null"}]
    else:
        schema["type"] = [_JSON_TYPES[kind.base], "null"]
    for bound in f.metadata["bounds"]:
        schema |= bound.schema or {}
    return schema
