"""A run resolves its model, its data and its identity once."""

from collections import Counter
from functools import partial, wraps

import pytest
from fork_server import Forks

from harness.evaluation import datasets, identity
from harness.models import checkpoint, model_folder

RESOLVING = [
    (model_folder, "config_in"),
    (checkpoint, "check_folder"),
    (datasets, "local"),
    (identity.Identity, "answers"),
]


def noting(calls):
    """To run first in a process: write a line for every call of `RESOLVING`."""
    for owner, name in RESOLVING:
        setattr(owner, name, noted(getattr(owner, name), calls))


def noted(plain, calls):
    @wraps(plain)
    def call(*args):
        with calls.open("a") as stream:
            stream.write(f"{plain.__name__}\n")
        return plain(*args)

    return call


@pytest.fixture
def calls_of(tmp_path, fork_server):
    """How often `python -m harness` with these arguments calls each function of `RESOLVING`."""
    forks = Forks(tmp_path, tmp_path)

    def count(*overrides):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        common = ["tasks=[pocket_existence]", "limit=2", f"runs={tmp_path / 'runs'}"]
        forks.run("harness", *overrides, *common, before=partial(noting, calls))
        return Counter(calls.read_text().split())

    return count


def test_a_run_resolves_everything_once(calls_of):
    once = {"config_in": 1, "check_folder": 1, "local": 1}
    command = ["method=idpruner", "keep=0.25"]
    assert calls_of(*command) == {**once, "answers": 2}  # of the baseline and of the pruned run
    assert calls_of(*command) == {**once, "answers": 2}  # finished: found by their identities
    assert calls_of("method=none") == {**once, "answers": 1}


def test_each_run_of_a_sweep_resolves_everything_once(calls_of):
    sweep = ["-m", "method=idpruner,random", "keep=0.25"]
    assert calls_of(*sweep) == {"config_in": 2, "check_folder": 2, "local": 2, "answers": 4}


def test_a_dry_run_resolves_everything_once(calls_of):
    assert calls_of("method=random", "dry_run=true") == {"config_in": 1, "check_folder": 1, "local": 1, "answers": 2}
