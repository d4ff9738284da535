"""Pushing to the hub: a local server stands for it, and keeps what it is sent."""

import base64
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.config import FitConfig
from pipeline.errors import ConfigError, OutputError
from pipeline.fit.stage import fit
from pipeline.fit.training.trainer import TrainerCallback
from pipeline.hub.upload import HubRepo
from tests.conftest import ROOT
from tests.fit.helpers import changed
from tests.hub_server import ServeHub

TOKEN = "hf_a_token_of_this_test"


class Hub:
    """A hub of one owner, ``me``."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.refuses_commits, self.commits = False, 0

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        if token != TOKEN:
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization'] or 'me'}/{asked['name']}"
            if not repo.startswith("me/"):
                return 403, {"error": "You don't have the rights to create a model there"}
            known = repo in self.repos
            self.private.setdefault(repo, asked.get("visibility") == "private")
            self.repos.setdefault(repo, {".gitattributes": b""})
            return 409 if known else 200, {"url": f"{self.url}/{repo}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        repo = "/".join(path.split("/")[3:5])
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        files = self.repos[repo]
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return 200, {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in asked
                ]
            }
        if "/commit/" in path:
            if self.refuses_commits:
                return 500, {"error": "out of order"}
            self.commits += 1
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            return 200, {"commitUrl": f"{self.url}/{repo}/commit/1", "commitOid": "1"}
        names = [{"rfilename": name} for name in files]
        tree = [{"type": "file", "path": n, "size": 1, "oid": "1"} for n in files]
        listing: Any = tree if "/tree/" in path else {"id": repo, "siblings": names, "sha": "1"}
        return 200, listing

    url = ""


@pytest.fixture
def hub(serve_hub: ServeHub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub on this machine, which the environment's token may write to."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, value = hub.answer(
                self.command, self.path.partition("?")[0], token, self.rfile.read(size)
            )
            content = json.dumps(value).encode()
            self.send_response(status)
            if "error" in value:
                self.send_header("X-Error-Message", value["error"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_HEAD = do  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    hub.url = serve_hub(Handler)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def pushed(config: FitConfig, **changes: Any) -> FitConfig:
    return changed(config, push_to_hub=True, **changes)


def words_of(config: FitConfig, *more: str) -> list[str]:
    args = ["--data-path", *config.data_path, "--output-dir", config.output_dir]
    args += ["--model-name-or-path", config.model_name_or_path, "--max-steps", "1"]
    return ["fit", *args, "--eval-strategy", "no", *more]


def test_the_trained_folder_is_pushed_and_nothing_private(
    config: FitConfig, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = fit(pushed(config, save_strategy="epoch", report_to="tensorboard", hub_private_repo=True))
    files = hub.repos["me/out"]
    assert set(files) >= {"model.safetensors", "config.json", "generation_config.json", "README.md"}
    assert "spiece.model" in files
    private = {"run.json", "trainer_state.json", "log.jsonl", "run_id"}
    assert private & {path.name for path in out.iterdir()} >= {"run.json", "trainer_state.json"}
    assert not any(name in private or "/" in name or "tfevents" in name for name in files)
    for name in files.keys() - {".gitattributes"}:
        assert files[name] == (out / name).read_bytes(), name
        assert str(tmp_path).encode() not in files[name], name
        assert str(Path(config.model_name_or_path)).encode() not in files[name], name
    assert hub.private == {"me/out": True}
    assert "pushed to me/out" in capsys.readouterr().err


def test_the_token_is_kept_nowhere(
    config: FitConfig, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    out = fit(pushed(config, hub_token=TOKEN, hub_model_id="me/mine", save_strategy="epoch"))
    assert "model.safetensors" in hub.repos["me/mine"]
    kept = [path for path in out.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in capsys.readouterr().err


def test_what_another_form_of_the_model_left_in_the_repository_goes(
    config: FitConfig, hub: Hub
) -> None:
    stale = {"adapter_config.json": b"", "model-00001-of-00002.safetensors": b"", "notes.md": b""}
    hub.repos["me/out"] = dict(stale)
    fit(pushed(config))
    assert stale.keys() & hub.repos["me/out"].keys() == {"notes.md"}


def test_a_hub_that_fails_costs_nothing_and_the_same_command_pushes(
    config: FitConfig, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses_commits = True
    words = words_of(config, "--push_to_hub", "True", "--hub_model_id", "me/late")
    assert run(words) == 1
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "me/late on the Hugging Face hub" in line
    assert "out of order" in line
    assert f"{config.output_dir} is complete; push it with the same command" in line
    assert "Traceback" not in err
    assert (Path(config.output_dir) / "trainer_state.json").is_file()
    hub.refuses_commits = False
    assert run(words) == 0
    assert "nothing to train" in capsys.readouterr().err
    assert "model.safetensors" in hub.repos["me/late"]


class NoStep(TrainerCallback):
    def on_train_begin(self, trainer: Any) -> None:
        raise AssertionError("a step would be taken")


@pytest.mark.parametrize(
    ("changes", "token", "kind", "match"),
    [
        ({}, None, ConfigError, "no token"),
        ({}, "hf_wrong", OutputError, "Invalid username"),
        ({"hub_model_id": "others/model"}, TOKEN, OutputError, "rights to create"),
        ({"hub_model_id": "no name/at/all"}, TOKEN, ConfigError, "not the name"),
    ],
)
def test_what_the_hub_would_refuse_is_refused_before_the_training(
    config: FitConfig,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    token: str | None,
    kind: type[Exception],
    match: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind) as caught:
        fit(pushed(config, **changes), callback=NoStep())
    assert match in str(caught.value)
    assert not Path(config.output_dir).exists()


def test_a_hub_that_cannot_be_reached_is_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="the model cannot be pushed") as caught:
        HubRepo(name="me/out").create()
    assert "refused" in caught.value.got


@pytest.mark.parametrize("name", ["--hub-model-id", "--hub-token"])
def test_a_setting_of_the_hub_wants_the_push(
    config: FitConfig, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words_of(config, name, "me/x")) == 1
    assert f"where: {name}; got: no --push-to-hub" in capsys.readouterr().err


def test_an_adapter_of_a_folder_is_not_pushed(config: FitConfig, hub: Hub) -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    with pytest.raises(ConfigError, match="adapter") as caught:
        fit(pushed(config, lora_r=4))
    assert "duet export --merge" in caught.value.do


def test_an_export_is_pushed(
    config: FitConfig, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = fit(config), tmp_path / "exported"
    args = ["export", str(out), "--output-dir", str(folder), "--push-to-hub"]
    assert run([*args, "--hub-model-id", "others/model"]) == 1
    assert not folder.exists(), "refused before anything is written"
    hub.refuses_commits = True
    assert run(args) == 1
    assert f"push it with hf upload exported {folder} ." in capsys.readouterr().err
    hub.refuses_commits = False
    assert run([*args[:3], str(tmp_path / "again"), *args[4:], "--hub-model-id", "e"]) == 0
    assert set(hub.repos["me/e"]) - {".gitattributes"} == {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_of_two_processes_one_pushes_and_both_hear_of_a_refusal(
    config: FitConfig, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [sys.executable, *torchrun, "pipeline", *words_of(config, "--push-to-hub")]
    for refused in (False, True):
        hub.refuses_commits = refused
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert (done.returncode != 0) == refused, done.stderr
        assert done.stderr.count("error: the model cannot be pushed") == 2 * refused
    assert hub.commits == 1
    assert "model.safetensors" in hub.repos["me/out"]
