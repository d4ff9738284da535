"""A model's files on the hub: what is missing there, and what only cannot be had at the moment."""

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from pipeline.errors import ModelError
from pipeline.hub.download import find_model_file
from tests.hub_server import ServeHub

CONFIG = b"{}"


class Handler(BaseHTTPRequestHandler):
    """Has a config, and is busy when it is asked for a template."""

    def do_HEAD(self) -> None:
        name = self.path.split("?")[0].rpartition("/")[2]
        self.send_response({"config.json": 200, "chat_template.jinja": 503}.get(name, 404))
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(CONFIG) if name == "config.json" else 0))
        if name not in ("config.json", "chat_template.jinja"):
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONFIG)

    def log_message(self, *_: object) -> None:
        pass


def test_a_file_that_a_busy_hub_does_not_give_is_not_taken_for_one_that_is_not_there(
    serve_hub: ServeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between tries
    serve_hub(Handler)
    cache = str(tmp_path)
    assert find_model_file("busy/model", "config.json", cache) is not None
    assert find_model_file("busy/model", "spiece.model", cache) is None
    with pytest.raises(ModelError, match="cannot be found"):
        find_model_file("busy/model", "chat_template.jinja", cache)
