"""Sweeps composed as the main command composes them."""

from functools import cache

from harness import cli
from harness.choices import register
from harness.config import validate
from harness.plan import shared


@cache
def sweep(*overrides):
    """(configuration, its own overrides) of every job of `python -m harness -m OVERRIDES`."""
    cli.register_resolvers()
    swept = register(cli._experiment("config", list(overrides), True, False))
    jobs = cli._checked_jobs("config", swept, True, ())
    _, own = shared([point for _, point in jobs])
    return [(validate(cfg), overrides) for (cfg, _), overrides in zip(jobs, own, strict=True)]


def jobs(*overrides):
    """The configurations alone."""
    return [config for config, _ in sweep(*overrides)]
