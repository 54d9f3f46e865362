"""Methods with the mistakes of their authors, and the lines that authors read."""

import inspect
from pathlib import Path

import pytest
import torch

from methods.base import Method, Selection


def place(comment):
    """Return the end of a message that names the line of the calling file that ends with `comment`."""
    file = Path(inspect.stack()[1].filename)
    lines = file.read_text(encoding="utf-8").splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"  {comment}"))
    return f"{file.name}:{number})"


def method_that(select, **attributes):
    """Return a method that calls select(tokens, k, generator)."""

    def _select(self, tokens, k, generator):
        return select(tokens, k, generator)

    return type("Theirs", (Method,), {"_select": _select, **attributes})()


def message(call, *args, error=ValueError, **kwargs):
    """Return the one line of the error that a call raises."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def keep_first(tokens, k, generator):
    """Keep the first k tokens."""
    return Selection(torch.arange(k))
