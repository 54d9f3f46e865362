"""What kind of method each is and what tables call it: conf/tables/groups.yaml, read once."""

from functools import cache

import yaml

from harness.core.config import conf

BASELINE = "baseline"  # method of the unpruned model in every frame
OTHER = "other"


@cache
def groups() -> dict[str, dict[str, str]]:
    """Group of methods -> its members and their names in tables, in the order of tables."""
    found: dict[str, dict[str, str]] = yaml.safe_load(conf("tables", "groups.yaml").read_text(encoding="utf-8"))
    return found


def group_of(method: str) -> str:
    """The kind of a method; empty for the baseline."""
    if method == BASELINE:
        return ""
    return next((group for group, members in groups().items() if method in members), OTHER)


def group_rank(group: str) -> int:
    """Place of a group in tables: the baseline's, those of conf/tables/groups.yaml, others."""
    order = ["", *groups()]
    return order.index(group) if group in order else len(order)


def title_of(method: str) -> str:
    """A method's name in tables; its own if conf/tables/groups.yaml has none."""
    if method == BASELINE:
        return "Unpruned"
    return next((members[method] for members in groups().values() if method in members), method)
