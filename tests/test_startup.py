"""Start and end of a process: quicker, and nothing that anyone relies on is left out."""

import gc
import subprocess
import sys

import pytest

from harness.startup import importing

ENDING = """
import atexit, sys, weakref
from harness.startup import end_quickly

class Ring:
    def __init__(self):
        self.me = self

    def __del__(self):
        print("garbage")

end_quickly()
atexit.register(print, "registered")
weakref.finalize(Ring, print, "finalized")
Ring()
sys.exit(2)
"""


def test_the_end_looks_for_no_garbage_and_does_the_rest():
    for text, words in ((ENDING, []), (ENDING.replace("\nend_quickly()", ""), ["garbage"])):
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (2, "")
        assert sorted(done.stdout.split()) == ["finalized", *words, "registered"]


def test_garbage_is_looked_for_again_after_a_failed_import():
    seen = []

    def fail():
        seen.append(gc.isenabled())
        raise ImportError

    with pytest.raises(ImportError), importing():
        fail()
    assert [*seen, gc.isenabled()] == [False, True]
