"""Groups of methods and their names in tables, from conf/tables/groups.yaml."""

from functools import cache

import yaml

from harness.core.config import conf

BASELINE = "baseline"  # name of the unpruned model in the column `method`
OTHER = "other"


@cache
def groups() -> dict[str, dict[str, str]]:
    """Return group -> its methods and their names in tables, in the order of tables."""
    members: dict[str, dict[str, str]] = yaml.safe_load(conf("tables", "groups.yaml").read_text(encoding="utf-8"))
    return members


def group_of(method: str) -> str:
    """Return the group of a method; empty for the baseline."""
    if method == BASELINE:
        return ""
    return next((group for group, members in groups().items() if method in members), OTHER)


def group_rank(group: str) -> int:
    """Return a group's position in tables: the baseline's, those of conf/tables/groups.yaml, others."""
    order = ["", *groups()]
    return order.index(group) if group in order else len(order)


def title_of(method: str) -> str:
    """Return a method's name in tables; its own if conf/tables/groups.yaml has none."""
    if method == BASELINE:
        return "Unpruned"
    return next((members[method] for members in groups().values() if method in members), method)
