"""Large files are told apart wherever they differ, and a Hub that refuses is one line."""

import time

import pytest
from huggingface_hub.errors import GatedRepoError

from harness import checkpoint
from harness.config import ModelConfig
from harness.errors import UserError

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
    assert time.monotonic() - started < 5


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
        checkpoint.fetch(REPO)
    assert "\n" not in str(caught.value)


def test_a_gated_repository_says_so(uncached, monkeypatch):
    import httpx2

    def refuse(*args, **kwargs):
        response = httpx2.Response(403, request=httpx2.Request("GET", "https://hub/some/repository"))
        raise GatedRepoError("Access to model some/repository is restricted", response=response)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=r"cannot download .*GatedRepoError.*restricted.*HF_TOKEN"):
        checkpoint.fetch(REPO)


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
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("the whole model"))
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda repo, file, **kwargs: asked.append((repo, file)) or tmp_path / file
    )
    assert checkpoint.described(REPO) == tmp_path
    assert asked == [("some/repository", "config.json")]
