"""What all tests share: tiny models, a processor and a scorer, built once; and which files run first."""

import pytest
from kinds import (  # noqa: F401  (hooks)
    pytest_itemcollected,
    pytest_runtest_logreport,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)

# These take longest. Started last, they would leave the other test process with nothing to do.
FIRST = ("test_slurm.py", "test_docs.py", "test_distributed.py", "test_kills.py", "test_robust.py", "test_decoding.py")
FIRST += ("test_golden.py", "test_reproduction.py", "test_report.py", "test_contract.py")


def pytest_collection_modifyitems(items):
    """Run the files that take longest first."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def processor():
    from tiny_models import tiny_processor

    return tiny_processor()


@pytest.fixture(scope="session")
def model():
    from tiny_models import tiny_qwen

    return tiny_qwen()


@pytest.fixture(scope="session")
def llavaov15():
    from tiny_llavaov15 import tiny_llavaov15

    return tiny_llavaov15()


@pytest.fixture(scope="session")
def scorer():
    import torch
    from tiny_models import HIDDEN

    from harness.models.scorer import VisionSelectorScorer

    torch.manual_seed(1)
    return VisionSelectorScorer(HIDDEN, 16, init_scale=0.5)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """Processes that have imported everything (`fork_server.Forks`); returns their HF_HOME."""
    from fork_server import start_server

    home = tmp_path_factory.mktemp("hub")
    start_server(home)
    return home


@pytest.fixture(scope="session")
def python(fork_server, tmp_path_factory):
    """A program to start in place of `python` (`forked_python`)."""
    from forked_python import forked_python

    with forked_python(tmp_path_factory.mktemp("bin")) as program:
        yield program


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks():
    """Nothing here is about a machine that loses power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield
