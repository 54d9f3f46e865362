"""Groups of methods, their printed names and their looks in figures, from conf/tables/groups.yaml."""

import re
from functools import cache

import yaml

from harness.core.config import conf

BASELINE = "baseline"  # name of the unpruned model in the column `method`
OTHER = "other"
UNPRUNED = {BASELINE, "none", "unpruned"}  # names of the unpruned model in tables, commands and figures


@cache
def groups() -> dict[str, dict[str, dict[str, str]]]:
    """Return group -> its methods -> their `name` and `look`, in the order of tables."""
    members: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(
        conf("tables", "groups.yaml").read_text(encoding="utf-8")
    )
    return members


@cache
def methods() -> dict[str, dict[str, str]]:
    """Return each listed method's `name` and `look`."""
    return {method: about for members in groups().values() for method, about in members.items()}


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
    """Return a method's printed name; its own if conf/tables/groups.yaml has none."""
    return "Unpruned" if method in UNPRUNED else methods().get(method, {"name": method})["name"]


def printed(label: str) -> str:
    """Return a row's label with the printed name of its method: "IDPruner* (seed 1)" for "idpruner* (seed 1)"."""
    return re.sub(r"^[^ *(]+", lambda method: title_of(method[0]), label)
