"""Paths that are URLs: what is read through fsspec, and prepared folders that are copied there."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import pipeline
from pipeline.config import FitConfig, PrepareConfig, TrainConfig
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.prepare.files.file_kind import recognize
from pipeline.prepare.files.sources import find_sources
from pipeline.store import remote as remote_module
from pipeline.store.manifest import read_manifest
from tests.conftest import SAMPLE, record

RECORDS = [record(f"r{i}", f"Question {i}?", f"Answer {i}, at length.") for i in range(50)]
JSON = json.dumps(RECORDS).encode()
LINES = "".join(json.dumps(r) + "\n" for r in RECORDS).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), sink, row_group_size=20)
    return sink.getvalue()


CONTENTS = {
    "chats.json": JSON,
    "chats.jsonl": LINES,
    "chats.parquet": parquet(),
    "chats.json.gz": gzip.compress(JSON),
    "chats.jsonl.zst": zstandard.compress(LINES),
    "chats.json.xz": lzma.compress(JSON),
    "chats.jsonl.bz2": bz2.compress(LINES),
}


@pytest.fixture(params=["memory", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty folder."""
    url = "memory://bucket" if request.param == "memory" else f"file://{tmp_path / 'bucket'}"
    yield url
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def put(remote: str) -> Callable[[str, bytes], str]:
    """Return a function that writes a file below the folder and returns its URL."""

    def write(name: str, content: bytes) -> str:
        with fsspec.open(f"{remote}/{name}", "wb", auto_mkdir=True) as file:
            file.write(content)
        return f"{remote}/{name}"

    return write


@pytest.fixture
def prepare(tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*paths: str, **options: Any) -> Any:
        options.setdefault("output_dir", str(tmp_path / "processed"))
        config = PrepareConfig(data_path=paths, model_name_or_path=str(tiny_t5), **options)
        return pipeline.prepare(config)

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def downloaded(url: str, folder: Path) -> Path:
    fs, path = fsspec.core.url_to_fs(url)
    fs.get(path, str(folder), recursive=True)
    return folder


Put = Callable[[str, bytes], str]
Prepare = Callable[..., Any]


# --- What is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
def test_a_url_is_prepared_like_the_file(
    name: str, put: Put, prepare: Prepare, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(CONTENTS[name])
    there = prepare(put(name, CONTENTS[name]), output_dir=str(tmp_path / "there"))
    here = prepare(str(tmp_path / name), output_dir=str(tmp_path / "here"))
    assert files(there) == files(here)
    assert read_manifest(there).counts["records"] == 50


def test_a_folder_gives_its_files_by_name_and_a_glob_its_matches(
    put: Put, remote: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.json", "a.jsonl", "c[1].json", "sub/d.json"):
        put(name, b'[{"id": 1}]')
    put("README.md", b"# words")

    def names(*paths: str) -> list[str]:
        sources = find_sources(paths)
        kinds = recognize(sources, [None] * len(sources))
        return [s.name for s, kind in zip(sources, kinds, strict=True) if kind is not None]

    assert names(remote) == ["a.jsonl", "b.json", "c[1].json", "d.json"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "note: skipped, text that is not JSON: README.md"
    assert names(f"{remote}/*.json*", f"{remote}/sub/") == [
        "a.jsonl",
        "b.json",
        "c[1].json",
        "d.json",
    ]
    assert names(f"{remote}/**/d*") == ["d.json"]
    assert names(f"{remote}/c[1].json") == ["c[1].json"]  # it exists, so it is no glob
    put("sub/b.json", b"[]")
    assert names(f"{remote}/b.json", f"{remote}/sub/b.json") == ["bucket/b.json", "sub/b.json"]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("nothing.json", "no such path"),
        ("*.nothing", "a glob that matches nothing"),
        ("README*", "no file of records"),
        ("empty", "no file of records"),
    ],
)
def test_what_is_not_there_is_an_error(put: Put, remote: str, path: str, what: str) -> None:
    put("README.md", b"# words")
    fsspec.core.url_to_fs(remote)[0].makedirs(f"{remote}/empty")
    with pytest.raises(InputError, match=what) as raised:
        recognize(sources := find_sources([f"{remote}/{path}"]), [None] * len(sources))
    assert raised.value.where == f"{remote}/{path}"


def test_a_local_path_that_exists_is_no_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory:").mkdir()
    Path("memory:/here.json").write_text("[]")
    (source,) = find_sources(["memory://here.json"])
    assert source.path == Path("memory:/here.json")


@pytest.mark.parametrize(
    ("url", "got", "do"),
    [
        ("s3://bucket/chats.json", "Install s3fs to access S3", "pip install s3fs"),
        ("gs://b/*.json", "Please install gcsfs to access Google Storage", "pip install gcsfs"),
        ("nope://x", "Unsupported filesystem: 'nope'", "check what is before ://"),
    ],
)
def test_a_file_system_that_is_not_installed_is_named(
    url: str, got: str, do: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for options in ({"paths": url}, {"paths": str(SAMPLE), "output_dir": url}):
        with pytest.raises(ConfigError, match="no file system for this kind of path") as raised:
            prepare(options.pop("paths"), **options)
        assert (raised.value.where, raised.value.got, raised.value.do) == (url, got, do)


@pytest.mark.parametrize("remote", ["memory"], indirect=True)
def test_a_path_that_may_not_be_seen_is_not_called_missing(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    url = put("chats.json", JSON)
    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    with pytest.raises(InputError, match="a remote path cannot be read") as raised:
        find_sources([url])
    assert (raised.value.where, raised.value.got) == (url, "PermissionError: Forbidden")


def test_paths_on_this_machine_want_no_package_for_urls(tmp_path: Path, tiny_t5: Path) -> None:
    run = "import sys; from pipeline.cli import run; code = run(sys.argv[1:]); "
    check = "sys.exit(code or int('upath' in sys.modules or 'fsspec' in sys.modules))"
    options = ["--data-path", SAMPLE, "--model-name-or-path", tiny_t5, "--output-dir", tmp_path]
    for _ in range(2):  # made, then found
        subprocess.run([sys.executable, "-c", run + check, "prepare", *options], check=True)


@pytest.mark.parametrize("name", ["chats.json", "chats.jsonl", "chats.parquet", "chats.json.gz"])
@pytest.mark.parametrize("remote", ["memory"], indirect=True)
def test_a_network_that_fails_is_an_error_and_no_cut_file(
    name: str, put: Put, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ResetError(Exception):
        """One that only the file system's own package has."""

    monkeypatch.setattr(remote_module, "_BUFFER", 1 << 10)
    url, read, left = put(name, CONTENTS[name]), MemoryFile.read, 0

    def fail(self: MemoryFile, size: int = -1) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise ResetError("the connection was reset\nand more")
        return read(self, min(size, 1 << 10))

    monkeypatch.setattr(MemoryFile, "read", fail)
    for reads in itertools.count():
        left = reads
        try:
            folder = prepare(url)
        except InputError as error:
            assert error.what == "a remote path cannot be read"
            assert error.got == "ResetError: the connection was reset"
            assert not list((tmp_path / "processed").glob("[!.]*"))
        else:
            break
    assert read_manifest(folder).counts["records"] == 50
    assert reads > min(len(CONTENTS[name]), 1 << 12) // 2**11  # a file is known by 4 kB of it


# --- What is written ------------------------------------------------------------------------------


def test_a_copy_opens_and_has_the_bytes_of_a_local_run(
    remote: str, prepare: Prepare, tmp_path: Path
) -> None:
    import datasets

    url = prepare(str(SAMPLE), output_dir=f"{remote}/prepared/", eval_fraction=0.2)
    local = prepare(str(SAMPLE), eval_fraction=0.2)
    assert url == f"{remote}/prepared/{local.name}"
    copy = downloaded(url, tmp_path / "copy")
    assert files(copy) == files(local)
    assert read_manifest(copy) == read_manifest(local)
    rows = datasets.load_from_disk(str(copy))
    assert rows["train"].num_rows + rows["eval"].num_rows == 93


def test_a_complete_copy_is_found_again_and_another_is_made_whole(
    remote: str, prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> str:
        url = prepare(str(SAMPLE), output_dir=remote)
        assert isinstance(url, str)
        return url

    url = run()
    fs, path = fsspec.core.url_to_fs(url)
    assert "already there, complete" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "cache")  # on another machine
    assert run() == url
    assert "already there, complete" in capsys.readouterr().err
    whole = files(downloaded(url, tmp_path / "whole"))
    for number, damage in enumerate(
        (
            lambda: fs.rm_file(f"{path}/train/shard-00000.arrow"),
            lambda: fs.pipe_file(f"{path}/train/shard-00000.arrow", b"short"),
            lambda: fs.pipe_file(f"{path}/manifest.json", b'{"fingerprint": "anoth'),
            lambda: fs.rm_file(f"{path}/manifest.json"),
        )
    ):
        damage()
        assert run() == url
        assert files(downloaded(url, tmp_path / f"again-{number}")) == whole


def test_a_copy_that_fails_in_the_middle_leaves_no_manifest(
    remote: str, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = prepare(str(SAMPLE), output_dir=remote)
    fs, path = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{path}/train/state.json")  # so there is something to copy
    kind, copied = type(fs), []
    put_file = kind.put_file

    def fail(self: Any, source: str, *args: Any, **options: Any) -> None:
        if len(copied) == 3:
            raise PermissionError("no right to write")
        copied.append(source)
        put_file(self, source, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "put_file", fail)
        with pytest.raises(OutputError, match="a remote path cannot be written") as raised:
            prepare(str(SAMPLE), output_dir=remote)
    assert raised.value.got == "PermissionError: no right to write"
    assert not fs.exists(f"{path}/manifest.json")
    assert prepare(str(SAMPLE), output_dir=remote) == url
    assert files(downloaded(url, tmp_path / "copy")) == files(prepare(str(SAMPLE)))


def test_the_command_prints_the_url(
    tiny_t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pipeline.cli import run

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = ["--data-path", f"file://{SAMPLE}", "--output-dir", f"file://{tmp_path}/out"]
    assert run(["prepare", *paths, "--model-name-or-path", str(tiny_t5)]) == 0
    (folder,) = (tmp_path / "out").iterdir()
    assert capsys.readouterr().out == f"file://{folder}\n"


@pytest.mark.parametrize("field", ["data_path", "output_dir", "prepared_dir"])
def test_training_wants_folders_on_this_machine(field: str) -> None:
    kind: Any = TrainConfig if field == "prepared_dir" else FitConfig
    values = {"data_path": "x", "model_name_or_path": "m", "output_dir": "o"}
    with pytest.raises(ConfigError, match="a URL where a folder on this machine is needed"):
        kind(**values | {field: "s3://bucket/folder"})
