"""Files in an object store: a server on this machine speaks S3's protocol.

It wants ``pip install 'moto[server]' s3fs``, and is skipped without.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.prepare.files import anchors, planning
from tests.prepare.files.test_segments import gist, prepared
from tests.prepare.helpers import cut_at, generated, write

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.moto_server.werkzeug_app")
pytest.importorskip("s3fs")
pytestmark = pytest.mark.slow
Requests = list[tuple[str, int, int]]
"""Path, first and last byte of what was asked for."""


@pytest.fixture(scope="module")
def requests() -> Iterator[Requests]:
    """Start the server and make it the one that all clients talk to; return what it is asked."""
    found: Requests = []
    app = moto.DomainDispatcherApplication(moto.create_backend_app)

    def noted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        wanted = environ.get("HTTP_RANGE", "")
        if environ["REQUEST_METHOD"] == "GET" and wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            found.append((environ["PATH_INFO"], int(first), int(last)))
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, noted, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="chats")
        yield found
    server.shutdown()
    thread.join()


def upload(path: Path) -> str:
    boto3.client("s3").upload_file(str(path), "chats", path.name)
    return f"s3://chats/{path.name}"


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_read_their_own_ranges_and_give_the_rows_of_a_file_on_this_machine(
    tmp_path: Path, tiny_t5: Path, requests: Requests, engine: str
) -> None:
    path = write(tmp_path / f"{engine}.jsonl", generated(40_000, 1))
    size = path.stat().st_size
    assert size > 3 * anchors.USUAL
    here = gist(prepared(path, tiny_t5, tmp_path / "here", eval_fraction=0.1))
    requests.clear()
    options = {"eval_fraction": 0.1, "num_workers": 2, "engine": engine}
    assert gist(prepared(upload(path), tiny_t5, tmp_path / "there", **options)) == here
    read = [last + 1 - first for name, first, last in requests if name.endswith(path.name)]
    # Once for the anchors, once for the rows, and what is looked at around each cut.
    assert size < sum(read) < 3 * size
    assert max(read) <= planning._BLOCK + 2 * anchors.REACH


def test_of_a_file_that_grew_few_chunks_are_made_anew(
    tmp_path: Path, tiny_t5: Path, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(monkeypatch)
    records = generated(200, 1)
    prepared(upload(write(tmp_path / "grown.jsonl", records)), tiny_t5, tmp_path / "out")
    before = set((tmp_path / "out" / ".chunks").glob("*/*/chunk.json"))
    url = upload(write(tmp_path / "grown.jsonl", records + generated(2, 2)))
    grown = prepared(url, tiny_t5, tmp_path / "out")
    assert len(set((tmp_path / "out" / ".chunks").glob("*/*/chunk.json")) - before) <= 2
    assert gist(grown) == gist(prepared(url, tiny_t5, tmp_path / "cold"))


def test_a_key_that_is_not_there_is_one_line(tmp_path: Path, tiny_t5: Path) -> None:
    with pytest.raises(InputError, match=r"s3://chats/none\.json"):
        prepared("s3://chats/none.json", tiny_t5, tmp_path / "out")
