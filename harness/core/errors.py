"""Errors that a user can fix, shown in one line instead of a traceback."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in the configuration or its surroundings; commands print it as one line and exit with code 2."""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Turn every error of the block into a UserError that begins with `what`, for libraries that raise anything."""
    try:
        yield
    except Exception as error:
        message = one_line(error)[:300]  # some of them fill a page
        raise UserError(f"{what}: {type(error).__name__}: {message}") from error


def did_you_mean(name: str, names: Iterable[str], more: Iterable[str] = (), listed_by: str = "") -> str:
    """Suggest the names most similar to `name`; if none is similar, list `names` and say how to list `more`."""
    names, more = sorted(names), set(more)
    near = difflib.get_close_matches(name, sorted({*names, *more}), n=5, cutoff=0.5)
    near = [other for other in near if _likeness(name, other) > _likeness(name, near[0]) - 0.1]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(names)}" + (f", and {len(more)} that {listed_by} lists" if more else "")


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, other, name).ratio()
