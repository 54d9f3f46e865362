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
def as_user_error(
    kinds: type[Exception] | tuple[type[Exception], ...], what: str = "", remedy: str = ""
) -> Iterator[None]:
    """Raise an error of `kinds` as a UserError: what failed, the message, what to do.

    `Exception` is for calls into libraries whose errors have no base class in common: their messages need the name of
    the type beside them, and some fill a page.
    """
    try:
        yield
    except kinds as error:
        message = f"{type(error).__name__}: {one_line(error)[:300]}" if kinds is Exception else one_line(error)
        raise UserError("; ".join(filter(None, [f"{what}: {message}" if what else message, remedy]))) from error


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
