"""Reads ``--config run.yaml``: settings by the flags' names, each value of its setting's type.

YAML's own types are not used: a value is read as its setting's type, from the characters that stand
there. So ``eval-strategy: no`` is the word ``no``, and ``learning-rate: 5e-5`` a number.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.commands.flags import FALSE, TRUE, UsageError, ignored, nearest
from pipeline.commands.trainer_flags import ALIASES
from pipeline.config.fields import flag, is_url
from pipeline.config.kinds import Kind, kinds_of
from pipeline.config.run_file import FILENAME, run_file_of, run_file_text
from pipeline.errors import ConfigError, DuetError, InputError, OutputError
from pipeline.recipes import recipe_names, recipe_path
from pipeline.store.atomic import write_file
from pipeline.store.remote import remote_errors, remote_path

_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class RunFile:
    """Settings out of files."""

    values: dict[str, Any] = field(default_factory=dict)
    """By field name."""
    places: dict[str, str] = field(default_factory=dict)
    """By flag: the file and the line in which it is set."""
    notes: list[str] = field(default_factory=list)

    def located(self, error: DuetError, args: Sequence[str]) -> DuetError:
        """Add to a setting that cannot be where in the files it stands; a flag in ``args`` wins."""
        if error.where in self.places and error.where not in args:
            error.where = f"{error.where}, {self.places[error.where]}"
        return error


def read_run_files(names: Sequence[str], command: str, config_class: type[Any]) -> RunFile:
    """Read files of settings; what a later one says stands.

    Args:
        names: Paths, or names of recipes.
        command: Whose settings they are.
        config_class: Its settings class. ``prepare`` and ``fit`` pass over keys of the other stage.

    Raises:
        InputError: There is no such file, or it is no YAML.
        ConfigError: A key is unknown, or a value of a wrong type.
    """
    found = RunFile()
    for name in names:
        path = _path_of(name)
        reader = _Reader(name, command, config_class)
        for line, key, node in _entries(name, path):
            reader.read(line, key, node)
        found.values.update(reader.values)
        found.places.update(reader.places)
        found.notes.extend(reader.notes())
    return found


def _path_of(name: str) -> Path:
    path = Path(name)
    if path.exists():
        return path
    recipe = recipe_path(name)
    if recipe is None:
        raise InputError(
            "no such settings file",
            where=name,
            got="nothing there",
            do=f"give a YAML file, or a recipe: {', '.join(recipe_names())}",
        )
    return recipe


def _entries(name: str, path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield line, key and value of each entry of a file, in order."""
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "a settings file cannot be read",
            where=name,
            got=getattr(error, "strerror", None) or error,
            do="give a YAML file in UTF-8, as --write-config writes one",
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _no_yaml(name, error) from error
    if root is None:  # an empty file, or comments alone
        return
    if not isinstance(root, yaml.MappingNode):
        raise _no_mapping(name, root)
    seen: dict[str, int] = {}
    for key_node, node in root.value:
        line, key = key_node.start_mark.line + 1, str(key_node.value)
        if not isinstance(key_node, yaml.ScalarNode):
            raise _no_mapping(name, key_node)
        field_name = key.replace("-", "_").lower()
        if field_name in seen:
            raise ConfigError(
                "a key is given twice",
                where=f"{name}, line {line}",
                got=f"{key}, also on line {seen[field_name]}",
                do="delete one of them",
            )
        seen[field_name] = line
        yield line, key, node


def _no_yaml(name: str, error: Exception) -> InputError:
    mark = getattr(error, "problem_mark", None)
    return InputError(
        "a settings file is not YAML",
        where=f"{name}, line {mark.line + 1}" if mark else name,
        got=getattr(error, "problem", None) or "values are nested too deeply",
        do="write KEY: VALUE, one a line, as --write-config does",
    )


def _no_mapping(name: str, node: Any) -> InputError:
    return InputError(
        "a settings file has the wrong form",
        where=f"{name}, line {node.start_mark.line + 1}",
        got=_shown(node),
        do="write KEY: VALUE, one a line, as --write-config does",
    )


class _Reader:
    """Takes the entries of one file."""

    def __init__(self, name: str, command: str, config_class: type[Any]) -> None:
        self._name, self._command = name, command
        self._kinds = kinds_of(config_class)
        self._trains = config_class.takes_trainer_flags
        # A file of both stages serves each of them.
        self._other_stage: Mapping[str, Kind] = {}
        if command in ("prepare", "fit"):
            from pipeline.config import TrainConfig  # late: it takes long to make

            self._other_stage = kinds_of(TrainConfig)
        self._passed_over: list[str] = []
        self._ignored: list[str] = []
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}

    def read(self, line: int, key: str, node: Any) -> None:
        """Take an entry.

        Raises:
            ConfigError: The key is unknown, or the value of a wrong type.
        """
        name = "--" + key.lower().replace("_", "-")
        name = ALIASES.get(name, name) if self._trains else name
        field_name = name[2:].replace("-", "_")
        where = f"{self._name}, line {line}, {key}"
        if field_name in self._kinds:
            value = _value(where, self._kinds[field_name], node)
            if value is not None:
                self.values[field_name] = value
                self.places[flag(field_name)] = f"{self._name}, line {line}"
        elif field_name in self._other_stage:
            self._passed_over.append(key)
        else:
            self._unknown(where, name, key, node)

    def _unknown(self, where: str, name: str, key: str, node: Any) -> None:
        """Take note of a setting of the Hugging Face trainer that changes nothing here."""
        text = node.value if isinstance(node.value, str) else None
        try:
            reason = ignored(name, text) if self._trains else None
        except UsageError as error:
            raise ConfigError(
                "a setting is not available",
                where=where,
                got=_shown(node),
                do=str(error).partition(": ")[2],
            ) from error
        if reason is not None:
            self._ignored.append(f"{key} of {self._name} is ignored: {reason}")
            return
        keys = {flag(known): kind.base is bool for known, kind in self._kinds.items()}
        near = nearest(name, text, keys)
        known = f"the nearest key is {near[2:]}" if near else "delete it"
        raise ConfigError(
            "an unknown key",
            where=where,
            got=_shown(node),
            do=f"{known}; duet {self._command} --help lists all keys",
        )

    def notes(self) -> Iterator[str]:
        """Yield what to say of keys that change nothing."""
        yield from self._ignored
        if self._passed_over:
            keys = ", ".join(self._passed_over)
            yield f"{self._name}: keys of the other stage are ignored: {keys}"


def _value(where: str, kind: Kind, node: Any) -> Any:
    """Return what a node says; None for null, which is the default.

    Raises:
        ConfigError: It is of another kind.
    """
    if node.tag == _NULL:
        return None
    if kind.is_list and isinstance(node.value, list) and node.id == "sequence":
        return [_scalar(where, kind, item) for item in node.value]
    value = _scalar(where, kind, node)
    return [value] if kind.is_list else value


def _scalar(where: str, kind: Kind, node: Any) -> Any:
    if isinstance(node.value, str) and node.tag != _NULL:
        text = node.value
        if kind.base is bool:
            if text.lower() in TRUE + FALSE:
                return text.lower() in TRUE
        else:
            with contextlib.suppress(ValueError):
                return kind.parse(text)
    raise ConfigError("a setting of a wrong type", where=where, got=_shown(node), do=f"give {kind}")


def _shown(node: Any) -> str:
    """Return a value as it is named in a message."""
    if node.tag == _NULL:
        return "null"
    if isinstance(node.value, str):
        return node.value or '""'
    return "a list" if node.id == "sequence" else "keys inside of it"


def write_run_file(
    path: Path, command: str, config_class: type[Any], values: Mapping[str, Any]
) -> None:
    """Write a command's settings as a file for ``--config``, and print its path.

    Args:
        path: Where to; it must not be there.
        command: Whose settings they are.
        config_class: Its settings class.
        values: By field name. Where nothing that is required is missing, they are checked.

    Raises:
        ConfigError: A setting is out of range.
        OutputError: The file is there, or cannot be written.
    """
    if path.exists():
        raise OutputError(
            "the file already exists",
            where="--write-config",
            got=path,
            do="give another name, or delete it",
        )
    required = [f.name for f in fields(config_class) if f.default is MISSING]
    if all(values.get(name) not in (None, ()) for name in required):
        config_class(**values)
    write_file(path, run_file_text(command, config_class, values, path.name))
    print(path)


def leave_settings(folder: Path | str, command: str, config: Any) -> None:
    """Leave the settings in a prepared folder, unless those that made it stand there."""
    path = remote_path(str(folder)) / FILENAME if is_url(str(folder)) else Path(folder) / FILENAME
    # The folder is complete without: one of others may be read, and not be written.
    with contextlib.suppress(OSError, DuetError), remote_errors(OutputError, folder):
        if path.exists():
            return
        text = run_file_of(command, config)
        if isinstance(path, Path):
            write_file(path, text, is_durable=False)
        else:
            path.write_text(text, encoding="utf-8")
