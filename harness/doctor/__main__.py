"""Check what this machine has and lacks for a run: python -m harness.doctor [data_root=FOLDER] [runs=FOLDER]."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.core.command import command
from harness.core.config import RULES, plain, shipped
from harness.core.console import print_json, say
from harness.core.errors import UserError
from harness.core.files import path_of
from harness.core.rules import flag, one_of, optional, require
from harness.doctor import BROKEN, OK, Finding, band, machine, presence, reproduction

MARKS = {"ok": " ", "absent": "-", "broken": "!"}


# Quick checks first: torch takes seconds to import.
PARTS: dict[str, Callable[[DictConfig], Iterable[Finding]]] = {
    "versions": lambda cfg: machine.versions(),
    "disk": lambda cfg: machine.disk(Path(str(cfg.runs))),
    "hub": lambda cfg: [machine.hub(float(cfg.hub))],
    "models": lambda cfg: (finding for finding, _ in presence.models()),
    "datasets": lambda cfg: presence.datasets(plain(cfg.data_root)),
    "baselines": lambda cfg: band.baselines(Path(str(cfg.runs)), shipped(str(cfg.paper))),
    "device": lambda cfg: machine.device(),
    "kernels": lambda cfg: machine.kernels(),
    "scorers": lambda cfg: presence.scorers({finding.name: folder for finding, folder in presence.models()}),
    "reproduces": lambda cfg: reproduction.reproduces(),
}


def findings(cfg: DictConfig) -> Iterator[Finding]:
    """Yield the findings of all parts, or of the part that `only` names."""
    for part in [str(cfg.only)] if cfg.only else PARTS:
        yield from PARTS[part](cfg)


def check(cfg: DictConfig) -> None:
    """Raise UserError unless the options have values of the right kind."""
    rules = {"hub": ("be a number of seconds, 0 for not at all", _is_seconds), "data_root": RULES["data_root"]}
    values = {"hub": cfg.hub, "data_root": plain(cfg.data_root), "only": cfg.only}
    require(values, {**rules, "only": optional(one_of(PARTS))})
    require(cfg, {"strict": flag()})
    path_of(cfg.runs, "runs")


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def main(cfg: DictConfig) -> None:
    """Print one line per finding, then one JSON line; with `strict`, UserError if something is broken.

    With `only`, print the lines of one part and no JSON line.
    """
    results: list[Finding] = []
    for finding in findings(cfg):
        if cfg.only:
            say(f"{finding.name} {finding.said}")
        else:
            if not results or results[-1].part != finding.part:
                print(f"\n{finding.part}" if results else finding.part)
            say(f"{MARKS[finding.state]} {finding.name:<28} {finding.said}")
        results.append(finding)
    counts = Counter(finding.state for finding in results)
    broken = [f"{finding.part}: {finding.name}" for finding in results if finding.state == BROKEN]
    if not cfg.only:
        print(f"\n{counts[OK]} ok, {counts['absent']} absent (-), {len(broken)} broken (!)")
        print_json({"counts": counts, "broken": broken, "findings": [*map(asdict, results)]})
    if broken and cfg.strict:
        raise UserError(f"broken: {', '.join(broken)}")


if __name__ == "__main__":
    command("doctor", main, (check,))
