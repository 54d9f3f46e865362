import pytest


@pytest.fixture
def empty(tmp_path):
    """A working directory in which a command should leave nothing."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder
