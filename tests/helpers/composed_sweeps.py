"""Runs and sweeps composed as the main command composes them."""

from dataclasses import replace
from functools import cache

from harness.core import command
from harness.core.config import validate
from harness.core.config_groups import register
from harness.core.overrides import compose
from harness.evaluation.preflight import locate
from harness.evaluation.sweep_plan import shared


def composed(*overrides):
    """Return the configuration of the one run of `python -m harness OVERRIDES`."""
    return validate(compose("config", register(list(overrides))))


@cache
def sweep(*overrides):
    """Return (configuration, its own overrides) of every job of `python -m harness -m OVERRIDES`."""
    command.register_resolvers()
    swept = register(command._experiment("config", list(overrides), True, False))
    jobs = command._checked_jobs("config", swept, True, ())
    _, own = shared([point for _, point in jobs])
    return [(validate(cfg), overrides) for (cfg, _), overrides in zip(jobs, own, strict=True)]


def located(*overrides):
    """Return the same with models located as for `dry_run=true`, without the Hub."""
    return [(locate(replace(config, dry_run=True)), own) for config, own in sweep(*overrides)]


def jobs(*overrides):
    """Return the configurations alone."""
    return [config for config, _ in sweep(*overrides)]
