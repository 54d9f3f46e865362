"""Start of a process without searches for garbage that cannot be there."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage within the block, whose imports make what stays: a fifth of their time is that search."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
