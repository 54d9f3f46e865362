"""Fixtures of tests of models."""

import pytest


@pytest.fixture(params=["decord", "PyAV"])
def reader(request, monkeypatch):
    """Files of videos are opened by decord, and by PyAV as where decord is absent."""
    if request.param == "PyAV":
        monkeypatch.setattr("harness.models.videos.find_spec", lambda name: None)
    else:
        pytest.importorskip("decord")
