"""What values of a configuration have to be, checked and refused in the same words everywhere."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import UserError

Rule = tuple[str, Callable[[Any], object]]  # what a value must do, in words, and whether it does


def require(values: Any, rules: Mapping[str, Rule]) -> None:
    """Raise a UserError for the first of `values` that breaks its rule; "model.dtype" is `dtype` in `model`."""
    for key, (words, holds) in rules.items():
        value = values
        for name in key.split("."):
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        if not holds(value):
            raise UserError(f"{key} must {words}, got {value!r}" if value == "" else f"{key} must {words}, got {value}")


def at_least(least: int) -> Rule:
    """Return the rule of a whole number."""
    words = f"be a whole number of at least {least}"
    return words, lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def count_or_share() -> Rule:
    """Return the rule of a whole number of at least 1 or of a share."""
    words, is_count = at_least(1)
    return f"{words}, or a share between 0 and 1", lambda value: is_count(value) or 0 < value < 1


def between(low: float, high: float) -> Rule:
    """Return the rule of a number that lies between two others and equals neither."""
    return f"lie between {low} and {high}", lambda value: low < value < high


def folder_name() -> Rule:
    """Return the rule of a name that names a folder of its own inside another one."""
    return "be a name that a folder can have", lambda name: Path(name).name.strip(".")


def one_of(allowed: Collection[Any]) -> Rule:
    """Return the rule of a choice."""
    return f"be one of {', '.join(allowed)}", lambda value: value in allowed


def optional(rule: Rule) -> Rule:
    """Return a rule that null satisfies, too."""
    words, holds = rule
    return words.replace("be ", "be null or ", 1), lambda value: value is None or holds(value)
