"""The tiny model, its processor and a scorer for it, built once."""

import pytest


@pytest.fixture(scope="session")
def processor():
    from tiny_models import tiny_processor

    return tiny_processor()


@pytest.fixture(scope="session")
def model():
    from tiny_models import tiny_qwen

    return tiny_qwen()


@pytest.fixture(scope="session")
def scorer():
    import torch
    from tiny_models import HIDDEN

    from harness.models.scorer import VisionSelectorScorer

    torch.manual_seed(1)
    return VisionSelectorScorer(HIDDEN, 16, init_scale=0.5)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """Processes that have imported everything (`fork_server.Forks`)."""
    from fork_server import start_server

    start_server(tmp_path_factory.mktemp("hub"))
