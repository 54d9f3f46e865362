"""Print the dependencies of pyproject.toml: `lowest` pins each to its lower bound, `newest` lifts the upper ones.

With `newest`, filelock keeps its upper bound: newer releases break everything (pyproject.toml says why).
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
KEPT = ("filelock",)


def bounds(which: str) -> list[str]:
    """Return requirements; with `lowest` only those that have a lower bound, as name==version."""
    with PYPROJECT.open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    return [line for requirement in dependencies if (line := _bound(requirement, which))]


def _bound(requirement: str, which: str) -> str | None:
    parts = re.fullmatch(r"([\w.-]+)(?:>=([\w.]+))?((?:,!=[\w.*]+)*)((?:,?<[\w.]+)?)((?:;.*)?)", requirement)
    if parts is None:
        raise SystemExit(f"pyproject.toml: expected name>=version,!=version,<version; marker, found {requirement!r}")
    name, floor, broken, cap, marker = parts.groups()
    if which == "lowest":
        return f"{name}=={floor}{marker}" if floor else None
    return f"{name}{f'>={floor}' if floor else ''}{broken}{cap if name in KEPT else ''}{marker}"


if __name__ == "__main__":
    if sys.argv[1:] not in (["lowest"], ["newest"]):
        raise SystemExit("usage: python scripts/bounds.py lowest | newest")
    print("\n".join(bounds(sys.argv[1])))
