"""Every error that a user can meet, as one tree; each prints as one line.

    DuetError
    ├── ConfigError           a setting that cannot be: --model-max-length 8
    ├── InputError            a path or a file that cannot be read: no such file
    ├── RecordError           a conversation given in memory that is none
    ├── TokenizerError        a model folder without a tokenizer that can be used
    ├── PreparedFolderError   a prepared folder that is missing, incomplete or damaged
    ├── ModelError            a model that cannot be loaded, or does not fit the prepared data
    ├── CheckpointError       a checkpoint that cannot be resumed with these settings
    ├── ProcessError          a process of the run that ended before the others
    └── OutputError           a folder or a disk that cannot be written

The command line prints ``str(error)`` on stderr and ends with exit code 1:

>>> print(InputError("no such path", where="chats.json", got="nothing", do="check --data-path"))
error: no such path; where: chats.json; got: nothing; do: check --data-path

>>> try:
...     raise ConfigError("too short", where="--model-max-length", got=8, do="give 64 or more")
... except DuetError as error:
...     error.what
'too short'
"""

import importlib.util


class DuetError(Exception):
    """The base of all errors that are the user's to fix, not ours.

    Args:
        what: What is wrong, in a few words.
        where: The flag, file, folder or record in which it is wrong.
        got: What was found there.
        do: What to do about it.
    """

    def __init__(self, what: str, *, where: object, got: object, do: str) -> None:
        """Keep the four parts; ``str()`` joins them into one line."""
        self.what, self.where, self.got, self.do = what, str(where), str(got), do
        super().__init__(what)

    def __str__(self) -> str:
        """Return the one line that the user sees."""
        line = f"error: {self.what}; where: {self.where}; got: {self.got}; do: {self.do}"
        return " ".join(line.split())

    def __reduce__(self) -> tuple[object, ...]:
        """Let the error cross a process boundary with its parts."""
        return (_rebuild, (type(self), self.what, self.where, self.got, self.do))


def _rebuild(kind: type[DuetError], what: str, where: str, got: str, do: str) -> DuetError:
    return kind(what, where=where, got=got, do=do)


class ConfigError(DuetError):
    """A setting is out of range, or two settings contradict each other: ``--max-steps 0``."""


class InputError(DuetError):
    """An input path is missing, cannot be read, or holds nothing usable: a zip archive."""


class RecordError(DuetError):
    """A conversation given in memory has a wrong shape: a turn that is a number."""


class TokenizerError(DuetError):
    """A model's tokenizer is missing or cannot be used: no ``tokenizer.json`` in its folder."""


class PreparedFolderError(DuetError):
    """A prepared folder is missing, incomplete, damaged or of another schema: no manifest in it."""


class ModelError(DuetError):
    """A model cannot be loaded or trained, or does not fit the data: a decoder-only model."""


class CheckpointError(DuetError):
    """A checkpoint cannot be resumed with the settings given: another ``--learning-rate``."""


class ProcessError(DuetError):
    """Another process of the run ended, and this one needs it to continue."""


class OutputError(DuetError):
    """A result cannot be written: the disk is full."""


def require_package(*names: str, where: object, install: str, otherwise: str = "") -> None:
    """Refuse, before anything takes time, what needs packages that are not there.

    Args:
        names: Of the packages, as they are imported.
        where: What needs them.
        install: What ``pip install`` takes for it.
        otherwise: What to do without them, if anything.

    Raises:
        ConfigError: One is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "a package is not installed",
            where=where,
            got="no " + " and no ".join(missing),
            do=f"pip install {install}" + (f", or {otherwise}" if otherwise else ""),
        )
