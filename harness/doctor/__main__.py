"""What is here and what is not, before a run finds out: python -m harness.doctor [data_root=FOLDER] [runs=FOLDER]."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.cli import command
from harness.config import is_data_root, shipped
from harness.doctor import BROKEN, OK, Finding, band, machine, presence
from harness.errors import UserError

MARKS = {"ok": " ", "absent": "-", "broken": "!"}


def findings(cfg: DictConfig) -> Iterator[Finding]:
    """Everything, the quick parts first: torch takes seconds to import."""
    yield from machine.versions()
    yield from machine.disk(Path(str(cfg.runs)))
    yield machine.hub(float(cfg.hub))
    folders = {}
    for finding, folder in presence.models():
        folders[finding.name] = folder
        yield finding
    yield from presence.datasets(_plain(cfg.data_root))
    yield from band.baselines(Path(str(cfg.runs)), shipped(str(cfg.paper)))
    yield from machine.device()
    yield from machine.kernels()
    yield from presence.scorers(folders)


def check(cfg: DictConfig) -> None:
    """Values are of their kind."""
    if isinstance(cfg.hub, bool) or not isinstance(cfg.hub, int | float) or cfg.hub < 0:
        raise UserError(f"hub must be a number of seconds, 0 for not at all, got {cfg.hub}")
    if not is_data_root(_plain(cfg.data_root)):
        raise UserError(f"data_root must be a folder or {{task: folder, ...}}, got {cfg.data_root}")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def main(cfg: DictConfig) -> None:
    """Print a line a finding as it is found, then one JSON line; UserError for what is broken where it is `strict`."""
    found: list[Finding] = []
    for finding in findings(cfg):
        if not found or found[-1].part != finding.part:
            print(f"\n{finding.part}" if found else finding.part)
        print(f"{MARKS[finding.state]} {finding.name:<28} {finding.said}", flush=True)
        found.append(finding)
    counts = Counter(finding.state for finding in found)
    broken = [f"{finding.part}: {finding.name}" for finding in found if finding.state == BROKEN]
    print(f"\n{counts[OK]} ok, {counts['absent']} absent (-), {len(broken)} broken (!)")
    print(json.dumps({"counts": counts, "broken": broken, "findings": [asdict(it) for it in found]}), flush=True)
    if broken and cfg.strict:
        raise UserError(f"broken: {', '.join(broken)}")


if __name__ == "__main__":
    command("doctor", main, (check,))
