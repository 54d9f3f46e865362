"""Start and end of a process: quicker, and nothing that anyone relies on is left out."""

import gc
import subprocess
import sys

import pytest

from harness.startup import importing

LEAVING = """
import atexit
from harness.startup import leave

class Slow:
    def __del__(self):
        print("taken apart")

kept = Slow()
atexit.register(print, "registered")
print("said")
leave()
print("never")
"""


def test_what_is_registered_for_the_end_still_happens_and_nothing_is_taken_apart():
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "said\nregistered\n", "")


def test_garbage_is_looked_for_again_after_a_failed_import():
    seen = []

    def fail():
        seen.append(gc.isenabled())
        raise ImportError

    with pytest.raises(ImportError), importing():
        fail()
    assert [*seen, gc.isenabled()] == [False, True]
