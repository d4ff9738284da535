"""Counts the stops that the settings of ``fit`` make on their way through its files.

    python scripts/config_trace.py [--list]

A tiny model is trained for two steps, with an evaluation and a checkpoint, in one process on the
CPU. Counted are calls with the settings among their arguments: the ``FitConfig`` itself, or an
object that holds it as an attribute (a context that goes everywhere counts as the settings do),
``self`` as well. A *stop* is where the file changes: into one by such a call, or back into one by
its return; the package ``config`` is one file. *Entered* counts the calls alone. A part of the
settings, or a value of them, is another thing and does not count. With ``PYTHONPATH`` another
revision is traced.
"""

import argparse
import functools
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":  # last: another revision's package may stand before it
    sys.path.append(str(Path(__file__).resolve().parent.parent))


@dataclass
class Trace:
    """The way of the settings through a run, as ``file:function`` where the file changes."""

    stops: list[str] = field(default_factory=list)
    entered: int = 0
    """Of the stops, without the ways back; two calls into one file after another are one."""

    @property
    def files(self) -> set[str]:
        return {stop.partition(":")[0] for stop in self.stops}


def trace(run: Callable[[], object], settings: type[Any], package: Path) -> Trace:
    """Run a function and return the way of settings of this type through a package's files."""
    found, resumed, counted = Trace(), set[FrameType](), list[FrameType]()
    here = called = ""

    def go_to(frame: FrameType) -> str:
        nonlocal here
        code = frame.f_code
        file = Path(code.co_filename).relative_to(package).as_posix()
        if file.startswith("config/"):
            file = "config"  # the settings' own package
        if file != here:
            found.stops.append(f"{file}:{code.co_qualname}")
        here = file
        return file

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal called
        code = frame.f_code
        if event == "return" and counted and counted[-1] is frame:
            counted.pop()
            if counted:
                go_to(counted[-1])
        if event != "call" or not code.co_filename.startswith(f"{package}/") or frame in resumed:
            return
        if code.co_flags & inspect.CO_GENERATOR:
            resumed.add(frame)  # each value it yields is a call to this hook, but no new one
        if any(_holds(value, settings) for value in _arguments(frame)):
            counted.append(frame)
            file = go_to(frame)
            found.entered += file != called
            called = file

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def _arguments(frame: FrameType) -> Iterator[Any]:
    code, values = frame.f_code, frame.f_locals
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        if name in values:
            yield values[name]


def _holds(value: Any, settings: type[Any]) -> bool:
    """Return whether a value is the settings, or has them as an attribute."""
    if isinstance(value, type):
        return False
    held = [value, *getattr(value, "__dict__", {}).values()]
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__"):
                held.append(getattr(value, name, None))
    if isinstance(value, functools.partial):
        held += [*value.args, *value.keywords.values()]
    return any(isinstance(one, settings) for one in held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print each stop")
    args = parser.parse_args()
    # Of the revision that PYTHONPATH names.
    import pipeline
    from pipeline.config import FitConfig
    from pipeline.fit.stage import fit
    from pipeline.tokenizer import load_tokenizer
    from scripts.tiny_t5 import make_tiny_t5
    from tests.fit.helpers import TEXTS, make_rows, write_prepared

    with tempfile.TemporaryDirectory() as folder:
        tiny = make_tiny_t5(Path(folder) / "tiny", TEXTS, vocab_size=200, d_model=32)
        tokenizer = load_tokenizer(str(tiny))
        rows = {"train": make_rows(tokenizer, 20, 0), "eval": make_rows(tokenizer, 5, 1)}
        config = FitConfig(
            data_path=str(write_prepared(Path(folder) / "data", tokenizer, rows)),
            model_name_or_path=str(tiny),
            output_dir=str(Path(folder) / "out"),
            max_steps=2,
            per_device_train_batch_size=4,
            logging_steps=1,
            save_steps=1,
            eval_strategy="epoch",
        )
        found = trace(lambda: fit(config), FitConfig, Path(pipeline.__file__).parent)
    for stop in found.stops if args.list else ():
        print(stop)
    print(f"{len(found.stops)} stops in {len(found.files)} files, {found.entered} of them entered")


if __name__ == "__main__":
    main()
