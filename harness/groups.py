"""What kind of method each is, for tables: conf/groups.yaml, read once."""

from functools import cache
from importlib.resources import files

import yaml

OTHER = "other"


@cache
def groups() -> dict[str, list[str]]:
    """Group of methods -> its members, in the order of tables."""
    found: dict[str, list[str]] = yaml.safe_load((files("conf") / "groups.yaml").read_text(encoding="utf-8"))
    return found


def group_of(method: str) -> str:
    """The kind of a method, as conf/groups.yaml has it; empty for the baseline."""
    if method == "baseline":
        return ""
    return next((group for group, members in groups().items() if method in members), OTHER)


def group_rank(group: str) -> int:
    """Place of a group in tables: the baseline's, those of conf/groups.yaml, others."""
    order = ["", *groups()]
    return order.index(group) if group in order else len(order)
