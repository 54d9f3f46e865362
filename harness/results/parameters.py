"""A method's parameters that differ from its defaults, which every row and title of a run names."""

from functools import cache
from typing import Any

import yaml

from harness.core.config import conf
from harness.results.schema import Recorded

LAMBDA = "lam"  # the parameter that has a column


def unusual(about: Recorded) -> dict[str, Any]:
    """Return the parameters of a run, by its `run.json`, that differ from the method's defaults.

    Files are left out: a run's label has their digests. The defaults are those of conf/method; for a method that is
    not in there, the run itself has recorded which parameters differ. Runs of earlier versions have not.
    """
    params = about["config"]["method"]
    defaults = _defaults().get(str(params["name"]))
    files = about.get("made_from", {})
    if defaults is None:
        return {key: value for key, value in about.get("parameters", {}).items() if key not in files}
    # A run also records attributes that are no parameters.
    return {key: params[key] for key in defaults if key in params and key not in files and params[key] != defaults[key]}


def in_words(name: str, value: Any) -> str:
    """Name a setting with its value, as "budget_at end"."""
    return f"{name} {value}"


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    """Return the default parameters of each method in conf/method."""
    files = conf("method").glob("*.yaml")
    tree = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    return {method: {key: value for key, value in params.items() if key != "name"} for method, params in tree.items()}
