"""Start of a process: quicker, and nothing that anyone relies on is left out."""

import gc

import pytest

from harness.core.timing import importing


def test_garbage_is_looked_for_again_after_a_failed_import():
    seen = []

    def fail():
        seen.append(gc.isenabled())
        raise ImportError

    with pytest.raises(ImportError), importing():
        fail()
    assert [*seen, gc.isenabled()] == [False, True]
