"""Data sets of the hub by name, ``hf://datasets/OWNER/NAME``: they are read as folders are.

A local server answers as the hub does: what is there, what is in it, and ranges of files.
"""

import gzip
import io
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config import PrepareConfig
from pipeline.errors import InputError
from pipeline.store.manifest import read_manifest
from tests.conftest import record
from tests.hub_server import ServeHub

DATA = "hf://datasets/me/chats"
RECORDS = [record(f"r{i}", f"Question {i}?", f"Answer {i}, at length.") for i in range(30)]


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in records).encode()


def parquet(records: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


FILES = {
    ".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n",
    "README.md": b"---\nlicense: mit\n---\n# Chats\n",
    "data/train-00000.parquet": parquet(RECORDS[:10]),
    "data/train-00001.jsonl.gz": gzip.compress(lines(RECORDS[10:20])),
    "dataset_infos.json": b'{"default": {}}',
    "extra/.hidden/more.jsonl": lines(RECORDS[:3]),
    "extra/more chats.jsonl": lines(RECORDS[20:]),
}


class Handler(BaseHTTPRequestHandler):
    """The endpoints of the hub that are asked for a data set, which is called ``me/chats``."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    fails: bool

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        own, repo = "/datasets/me/chats/resolve/main/", "/api/datasets/me/chats"
        if path.startswith(own) and path.removeprefix(own) in self.files:
            self._send_range(self.files[path.removeprefix(own)])
        elif path in (repo, f"{repo}/revision/main"):
            self._send({"id": "me/chats", "sha": "1", "siblings": []})
        elif path.startswith(f"{repo}/tree/main"):
            self._send_tree(path.removeprefix(f"{repo}/tree/main").strip("/"))
        else:
            code = "RepoNotFound"
            if path.startswith(repo):
                code = "RevisionNotFound" if "/revision/" in path else "EntryNotFound"
            self._send({"error": "not found"}, 404, {"X-Error-Code": code})

    do_HEAD = do_GET  # noqa: N815

    def _send_tree(self, folder: str) -> None:
        found: dict[str, dict[str, Any]] = {}
        prefix = f"{folder}/" if folder else ""
        for name, content in self.files.items():
            if name.startswith(prefix):
                found[name] = {"type": "file", "size": len(content)}
                for parent in Path(name).parents:
                    if len(str(parent)) > len(folder) and str(parent) != ".":
                        found[str(parent)] = {"type": "directory", "size": 0}
        if not found:
            self._send({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        if "recursive=true" not in self.path.lower():
            found = {n: v for n, v in found.items() if "/" not in n.removeprefix(prefix)}
        self._send([{"path": n, "oid": "1"} | v for n, v in found.items()])

    def _send_range(self, content: bytes) -> None:
        start, end = 0, len(content)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else end
        if self.fails and start:
            self._send({"error": "out of order"}, 400)
            return
        self._send(content[start:end], 206)

    def _send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, header in (headers or {}).items():
            self.send_header(name, header)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(serve_hub: ServeHub) -> type[Handler]:
    """The hub, which has one data set."""

    class Own(Handler):
        """One for each test."""

    Own.files, Own.fails = dict(FILES), False
    serve_hub(Own)
    return Own


Prepare = Callable[..., Path]


@pytest.fixture
def prepare(tiny_t5: Path, tmp_path: Path) -> Prepare:
    def run(*paths: str, **options: Any) -> Path:
        options.setdefault("output_dir", str(tmp_path / "processed"))
        config = PrepareConfig(data_path=paths, model_name_or_path=str(tiny_t5), **options)
        folder = pipeline.prepare(config)
        assert isinstance(folder, Path)
        return folder

    return run


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The same data set as a folder."""
    folder = tmp_path / "chats"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("below", "records", "passed_over"),
    [("", 30, 1), ("/data", 20, 0), ("/extra/", 10, 0), ("/data/train-00000.parquet", 10, 0)],
)
def test_a_data_set_by_name_is_prepared_as_a_folder_is(
    below: str, records: int, passed_over: int, prepare: Prepare, clone: Path, tmp_path: Path
) -> None:
    by_name = prepare(DATA + below, output_dir=str(tmp_path / "by-name"))
    as_folder = prepare(f"{clone}{below}", output_dir=str(tmp_path / "as-folder"))
    assert contents(by_name) == contents(as_folder)
    manifest = read_manifest(by_name)
    assert manifest.counts["records"] == manifest.counts["conversations"] == records
    assert manifest.files_passed_over == passed_over


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "pattern", [f"{DATA}/**/*.jsonl*", f"{DATA}@main/**/*.jsonl*", f"{DATA}/*/*.jsonl*"]
)
def test_globs_and_revisions_of_a_data_set(pattern: str, prepare: Prepare) -> None:
    sources = [source["name"] for source in read_manifest(prepare(pattern)).sources]
    assert sources == ["train-00001.jsonl.gz", "more chats.jsonl"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "path",
    ["hf://datasets/me/gone", "hf://me/chats", f"{DATA}/gone", f"{DATA}@gone"],
)
def test_a_data_set_that_is_not_there_is_one_line(path: str, prepare: Prepare) -> None:
    with pytest.raises(InputError) as raised:
        prepare(path)
    assert raised.value.where == path
    assert raised.value.what == "no such path"
    assert raised.value.do.startswith("check --data-path: hf://datasets/OWNER/NAME; a private")


def test_a_name_of_the_hub_that_is_no_folder_gets_the_right_word(prepare: Prepare) -> None:
    with pytest.raises(InputError) as raised:
        prepare("me/chats")
    assert raised.value.do.endswith("a data set of the hub is hf://datasets/me/chats")


def test_a_hub_that_fails_in_the_middle_is_no_cut_file(
    hub: type[Handler], prepare: Prepare, tmp_path: Path
) -> None:
    hub.files["data/train-00000.parquet"] = lines(RECORDS * 4000)
    hub.fails = True
    with pytest.raises(InputError, match="a remote path cannot be read") as raised:
        prepare(f"{DATA}/data/train-00000.parquet")
    assert raised.value.where == f"{DATA}/data/train-00000.parquet"
    assert not list((tmp_path / "processed").glob("[!.]*"))
