"""Large files are told apart wherever they differ, and a Hub that refuses is one line."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub.errors import GatedRepoError

from harness.core.config import ModelConfig
from harness.core.config_groups import register
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.evaluation.run_context import RunContext
from harness.models import checkpoint
from harness.pocket import WEIGHTS

REPO = ModelConfig(name="theirs", pretrained="some/repository")


@pytest.fixture
def large(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "WHOLE_HASH", 1 << 16)
    monkeypatch.setattr(checkpoint, "BLOCK", 1 << 10)
    file = tmp_path / "shard.safetensors"
    file.write_bytes(bytes(1 << 20))
    return file


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.7, 1])
def test_a_tensor_that_changed_anywhere_in_a_large_file_shows(large, share):
    before = checkpoint.content_digest(large)
    tensor = 1 << 15  # wider than the gaps between the blocks
    content = bytearray(large.read_bytes())
    start = int(share * (len(content) - tensor))
    content[start : start + tensor] = b"\1" * tensor
    large.write_bytes(content)
    assert checkpoint.content_digest(large) != before


def test_the_size_of_a_large_file_counts(large):
    before = checkpoint.content_digest(large)
    large.write_bytes(bytes((1 << 20) + 1))
    assert checkpoint.content_digest(large) != before


def test_only_a_few_blocks_of_a_large_file_are_read(tmp_path):
    file = tmp_path / "shard.safetensors"
    with file.open("wb") as stream:
        stream.truncate(64 << 30)  # sparse
    started = time.monotonic()
    checkpoint.content_digest(file)
    assert time.monotonic() - started < 20


@pytest.fixture
def uncached(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.mark.parametrize("error", [OSError("blocked\nby a proxy"), RuntimeError("blocked by a proxy")])
def test_a_download_that_fails_is_one_line(error, uncached, monkeypatch):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        UserError, match=r"cannot download some/repository .*blocked by a proxy.*HF_TOKEN.*=/path$"
    ) as caught:
        checkpoint.download(REPO)
    assert "\n" not in str(caught.value)


def test_a_gated_repository_says_so(uncached, monkeypatch):
    import httpx2

    def refuse(*args, **kwargs):
        response = httpx2.Response(403, request=httpx2.Request("GET", "https://hub/some/repository"))
        raise GatedRepoError("Access to model some/repository is restricted", response=response)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=r"cannot download .*GatedRepoError.*restricted.*HF_TOKEN"):
        checkpoint.download(REPO)


@pytest.mark.parametrize(("setting", "expected"), [(None, checkpoint.HUB_TIMEOUT), ("7", 7.0)])
def test_the_hubs_own_timeout_is_respected(setting, expected, uncached, monkeypatch):
    asked = []
    if setting is None:
        monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    else:
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", setting)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, timeout, **kwargs: asked.append(timeout))
    assert checkpoint.check(REPO) is None
    assert asked == [expected]


def test_of_a_model_that_is_not_here_only_the_configuration_is_downloaded(uncached, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("the whole model"))
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda repo, file, **kwargs: asked.append((repo, file)) or tmp_path / file
    )
    assert checkpoint.download_config(REPO) == tmp_path
    assert asked == [("some/repository", "config.json")]


@pytest.fixture
def hub(uncached, monkeypatch):
    """A Hub on this machine with the repository of `REPO`: what lies in it, and what was fetched."""
    held, fetched = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.partition("/resolve/main/")[2]
            content = held.get(name) if name else json.dumps({"id": REPO.pretrained}).encode()
            there = {"ETag": f'"{name}"', "X-Repo-Commit": "0" * 40, "Content-Length": str(len(content or b""))}
            self.send_response(404 if content is None else 200)
            for header in ({"X-Error-Code": "EntryNotFound"} if content is None else there).items():
                self.send_header(*header)
            self.end_headers()
            if self.command == "GET" and content is not None:
                fetched.extend([name] if name else [])
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 (a name that http.server looks for)

        def log_message(self, *args): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "60")  # this machine may be busy
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", at)
        template = at + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield held, fetched
        server.shutdown()


def test_a_prior_beside_weights_that_are_not_here_is_seen_before_they_are_fetched(hub):
    held, fetched = hub
    held["config.json"] = (WEIGHTS / "config.json").read_bytes()
    run = ["method=d2pruner", f"model.pretrained={REPO.pretrained}"]
    with pytest.raises(UserError, match="d2pruner has no debiasing prior"):
        RunContext().check_family(compose("config", register(run)))
    RunContext().check_family(compose("config", register([*run, "method.prior=none"])))
    assert fetched == ["config.json"]
    held["d2prior.safetensors"] = (WEIGHTS / "d2prior.safetensors").read_bytes()
    held["model.safetensors"] = b"not to be fetched yet"
    RunContext().check_family(compose("config", register(run)))
    assert fetched == ["config.json", "d2prior.safetensors"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"lacks tokenizer.json or tokenizer.model or vocab.json or vocab.txt: save"),
        ("generation_config.json", "[]", r"generation_config.json is damaged, expected a JSON object"),
        ("generation_config.json", "{", r"generation_config.json is not JSON"),
        ("config.json", "[" * 100_000, r"config.json is not JSON"),
        ("config.json", "3", r"config.json is damaged, expected a JSON object"),
    ],
)
def test_what_transformers_would_make_up_is_refused(name, content, message, tmp_path):
    for file in WEIGHTS.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        checkpoint.check_folder(tmp_path)
