"""``duet report``: what the folders are -> their page, written whole or not at all."""

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.console.progress import Wait
from pipeline.errors import ConfigError, InputError, require_package
from pipeline.report.config import ReportConfig
from pipeline.report.page import Section, render, shorten
from pipeline.report.svg import StyleSheet
from pipeline.store.atomic import write_file
from pipeline.store.manifest import FILENAME as MANIFEST
from pipeline.store.manifest import read_manifest

_LONGEST_NAME, _LONGEST_LINE = 80, 200


def report(config: ReportConfig) -> Path:
    """Write the page of a prepared folder, or of one or more runs; return its path.

    Raises:
        ConfigError: matplotlib is missing; or prepared folders and runs are mixed.
        InputError: A folder is neither.
        PreparedFolderError, TokenizerError: A prepared folder is damaged.
        OutputError: The page cannot be written.
    """
    from pipeline.report.run.output import is_run

    folders = [Path(folder) for folder in config.folders]
    prepared = [folder for folder in folders if (folder / MANIFEST).is_file()]
    for folder in folders:
        if folder not in prepared and not is_run(folder):
            raise _neither(folder)
    if prepared and len(folders) > 1:
        raise ConfigError(
            "a report shows one prepared folder, or runs",
            where=prepared[0],
            got=f"a prepared folder, and {len(folders) - 1} more",
            do="give it alone",
        )
    path = Path(config.output_path) if config.output_path else _default_path(folders)
    for folder in prepared:
        if folder.resolve() in path.resolve().parents:
            raise ConfigError(
                "nothing else may be written into a prepared folder",
                where="--output-path",
                got=path,
                do="give a path outside of it",
            )
    require_package("matplotlib", where="duet report", install="'duet-t5[report]'")
    # It would say that it makes a cache of fonts, once on each machine.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    sheet = StyleSheet()
    with Wait("drawing the page"):
        if prepared:
            title, subtitle, sections = _of_prepared(folders[0], config.pairs, sheet)
        else:
            title, subtitle, sections = _of_runs(folders, sheet)
        write_file(path, render(title, subtitle, sections, sheet))
    return path


def _neither(folder: Path) -> InputError:
    there = "a file" if folder.is_file() else "nothing there" if not folder.exists() else None
    return InputError(
        "neither a prepared folder nor the output of a run",
        where=folder,
        got=there
        or "no manifest.json, log.jsonl, trainer_state.json or checkpoint-N/trainer_state.json",
        do="give the path that duet prepare printed, or the --output-dir of duet fit",
    )


def _default_path(folders: Sequence[Path]) -> Path:
    """Return a path beside the first folder, with the names of all.

    >>> _default_path([Path("runs/a"), Path("runs/b")]).as_posix()
    'runs/a+b.report.html'
    """
    name = "+".join(folder.resolve().name for folder in folders)[:_LONGEST_NAME]
    first = folders[0]  # as it was given, unless it ends in no name: ".", ".."
    parent = first.parent if first.name not in ("", "..") else first.resolve().parent
    return parent / f"{name}.report.html"


def _of_prepared(folder: Path, pairs: int, sheet: StyleSheet) -> tuple[str, str, list[Section]]:
    from pipeline.report.dataset.sections import dataset_sections

    manifest = read_manifest(folder)
    names = ", ".join(str(source["name"]) for source in manifest.sources)
    return (
        f"Prepared folder {folder.resolve().name}",
        shorten(names, _LONGEST_LINE),
        list(dataset_sections(folder, manifest, pairs, sheet)),
    )


def _of_runs(folders: Sequence[Path], sheet: StyleSheet) -> tuple[str, str, list[Section]]:
    from pipeline.report.run.output import read_run
    from pipeline.report.run.sections import run_sections

    names = run_names(folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    return title, shorten(", ".join(names), _LONGEST_LINE), list(run_sections(runs, sheet))


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: as many of its last parts as tell it from the others.

    >>> run_names([Path("/a/x/out"), Path("/a/y/out")]), run_names([Path("/a/x"), Path("/a/y")])
    (['x/out', 'y/out'], ['x', 'y'])
    """
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({i})" for i, part in enumerate(parts, start=1)]
