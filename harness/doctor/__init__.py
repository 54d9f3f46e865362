"""What a machine has and lacks for a run, finding by finding."""

from dataclasses import dataclass

OK, ABSENT, BROKEN = "ok", "absent", "broken"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `absent` is what a run may do without or fetch; what is `broken` has to be put right."""

    part: str  # versions, disk, hub, models, datasets, baselines, device, kernels, scorers or reproduces
    name: str
    state: str
    said: str
