"""Answers on disk as they are finished, so that a run that was killed resumes; then one file.

    .G.jsonl.journal      what was asked, then a line for each answer, in the order they ended
    G.jsonl               all of them in the order of the input, at the end
    G.jsonl.run.json      what was asked

A line is whole or not there: a half one, which a kill leaves at the end, is cut off.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pipeline.errors import OutputError
from pipeline.json_object import read_json_object
from pipeline.store.atomic import locked_folder, output_errors, sync_folder, write_file

Request = dict[str, Any]
"""What decides the answers: model, settings, content of the input; JSON."""


class Journal:
    """The answers of one output file.

    Args:
        output: The file that is there at the end.
        request: What the answers are to.

    Raises:
        OutputError: The file, or a journal of it, is there and answers something else; or it
            cannot be written.
    """

    def __init__(self, output: Path, request: Request) -> None:
        self._output, self._request = output, request
        self._path = output.with_name(f".{output.name}.journal")
        self._run_path = output.with_name(f"{output.name}.run.json")
        self._places: dict[int, tuple[int, int]] = {}
        self._exit = contextlib.ExitStack()

    @property
    def is_complete(self) -> bool:
        """Whether the output is there, as it was asked for.

        Raises:
            OutputError: It is there, and answers something else.
        """
        if not self._output.exists():
            return False
        with contextlib.suppress(OSError, ValueError):
            if read_json_object(self._run_path) == self._request:
                return True
        raise OutputError(
            "the output already exists",
            where=self._output,
            got="a file of other answers",
            do="give another --output-path, or delete it",
        )

    def __enter__(self) -> Self:
        with output_errors(self._path):
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._exit.enter_context(self._path.open("a+b"))
        try:
            self._exit.enter_context(locked_folder(self._path))
            self._read()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def __len__(self) -> int:
        return len(self._places)

    def write(self, index: int, row: dict[str, Any]) -> None:
        """Keep the answer with a place in the input."""
        self._append(index, json.dumps([index, row], ensure_ascii=False))

    def publish(self) -> None:
        """Put all answers into the output, in the order of the input."""
        temporary = self._output.with_name(f".{self._output.name}.tmp")
        with output_errors(self._output):
            with temporary.open("wb") as file:
                file.writelines(self._rows())
                file.flush()
                os.fsync(file.fileno())
            write_file(self._run_path, json.dumps(self._request, indent=2, ensure_ascii=False))
            temporary.replace(self._output)
            sync_folder(self._output.parent)
            self._path.unlink()

    def _rows(self) -> Iterator[bytes]:
        for index in sorted(self._places):
            start, size = self._places[index]
            self._file.seek(start)
            _, row = json.loads(self._file.read(size))
            yield json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    def _read(self) -> None:
        """Find the answers that are there already."""
        with output_errors(self._path):
            self._file.seek(0)
            end, first = 0, True
            for line in self._file:
                if not line.endswith(b"\n"):
                    break
                try:
                    index, content = json.loads(line)
                except ValueError:  # of a machine that lost its power
                    break
                if first:
                    self._check(content)
                    first = False
                else:
                    self._places[index] = (end, len(line))
                end += len(line)
            self._file.truncate(end)
        if first:
            self._append(-1, json.dumps([-1, self._request], ensure_ascii=False))
            del self._places[-1]

    def _check(self, started: Request) -> None:
        other = [name for name in self._request if started.get(name) != self._request[name]]
        if other:
            raise OutputError(
                "these answers belong to another command",
                where=self._path,
                got=f"another {other[0]}: {started.get(other[0])}, now {self._request[other[0]]}",
                do="run the first command again, or give another --output-path, or delete it",
            )

    def _append(self, index: int, text: str) -> None:
        line = text.encode("utf-8", "replace") + b"\n"
        with output_errors(self._path):
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()  # a killed process loses none of it
        self._places[index] = (start, len(line))
