"""Bounds of dependencies: what pyproject.toml says is what the two files of constraints install."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from harness.results.result import collect

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(line) for name, lines in PROJECT["optional-dependencies"].items() if name != "flash" for line in lines
]


def locked(name):
    """Versions by normalised name; every line is a comment or name==version and no more."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._]+)", line) for line in lines if not line.startswith("#")]
    assert all(pairs)
    return {normal(pair[1]): Version(pair[2]) for pair in pairs}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def printed(which):
    script = ROOT / "scripts" / "bounds.py"
    done = subprocess.run([sys.executable, script, which], capture_output=True, text=True, check=True)
    return {normal(one.name): one for one in map(Requirement, done.stdout.splitlines())}


@pytest.mark.parametrize("one", REQUIRED + EXTRAS, ids=str)
def test_the_lock_has_a_version_within_the_bounds(one):
    assert locked("constraints.txt")[normal(one.name)] in one.specifier


@pytest.mark.parametrize("one", REQUIRED, ids=str)
def test_the_lowest_versions_are_the_lower_bounds(one):
    version = locked("constraints-lowest.txt")[normal(one.name)]
    assert version in one.specifier
    floors = [Version(it.version) for it in one.specifier if it.operator == ">="]
    assert floors in ([], [version])
    if floors:
        assert version in printed("lowest")[normal(one.name)].specifier


@pytest.mark.parametrize("one", REQUIRED, ids=str)
def test_newest_lifts_upper_bounds_and_keeps_the_rest(one):
    newest = printed("newest")[normal(one.name)]
    kept = [it for it in one.specifier if it.operator != "<" or one.name == "filelock"]
    assert sorted(map(str, newest.specifier)) == sorted(map(str, kept))
    assert newest.marker == one.marker


def test_the_lock_has_what_the_committed_results_ran_with():
    versions = locked("constraints.txt")
    runs = collect(ROOT / "results" / "pocket" / "runs")
    packages = {json.dumps(run.packages) for run in runs}
    assert packages
    for found in packages:
        ran = {name: version for name, version in json.loads(found).items() if version is not None}
        assert {name: str(versions[normal(name)]) for name in ran} == ran
