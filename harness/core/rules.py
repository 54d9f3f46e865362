"""Rules for configuration values, with uniform error messages."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import UserError

Rule = tuple[str, Callable[[Any], object]]  # the words after "must" in the message, and the check


def require(values: Any, rules: Mapping[str, Rule]) -> None:
    """Raise UserError for the first of `values` that breaks its rule; the key "model.dtype" is `dtype` in `model`."""
    for key, (words, holds) in rules.items():
        value = values
        for name in key.split("."):
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        if not holds(value):
            raise UserError(f"{key} must {words}, got {value!r}" if value == "" else f"{key} must {words}, got {value}")


def at_least(least: int) -> Rule:
    """Require a whole number of at least `least`."""
    words = f"be a whole number of at least {least}"
    return words, lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def count_or_share() -> Rule:
    """Require a whole number of at least 1, or a share between 0 and 1."""
    words, is_count = at_least(1)
    return f"{words}, or a share between 0 and 1", lambda value: is_count(value) or 0 < value < 1


def between(low: float, high: float) -> Rule:
    """Require a number above `low` and below `high`."""
    return f"lie between {low} and {high}", lambda value: low < value < high


def flag() -> Rule:
    """Require true or false."""
    return "be true or false", lambda value: isinstance(value, bool)


def text() -> Rule:
    """Require one text that is not blank, or a number in its place."""
    return "be one text", lambda value: isinstance(value, str | int | float) and str(value).strip()


def folder_name() -> Rule:
    """Require the name of a subfolder, and no path that leads elsewhere."""
    return "be a name that a folder can have", lambda name: Path(name).name.strip(".")


def one_of(allowed: Collection[Any]) -> Rule:
    """Require one of `allowed`."""
    return f"be one of {', '.join(allowed)}", lambda value: value in allowed


def optional(rule: Rule) -> Rule:
    """Allow null as well."""
    words, holds = rule
    return f"be null or {words.removeprefix('be ')}", lambda value: value is None or holds(value)
