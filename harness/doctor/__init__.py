"""Checks whether a machine has what a run needs."""

from dataclasses import dataclass

OK, ABSENT, BROKEN = "ok", "absent", "broken"


@dataclass(frozen=True)
class Finding:
    """The result of one check. What is `absent` is optional or can be downloaded; what is `broken` needs a repair."""

    part: str  # versions, disk, hub, models, datasets, baselines, device, kernels, scorers or reproduces
    name: str
    state: str
    said: str
