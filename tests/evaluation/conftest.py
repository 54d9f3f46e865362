"""Fixtures of tests that load lmms-eval's tasks."""

import socket

import pytest
from several_questions import alone, several  # noqa: F401  (fixtures)


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """Prepared data sets of these tests alone, made once."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """No way out: what asks over the network fails."""

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
