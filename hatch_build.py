"""Put the data of the repository's top into the wheel."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# `TOP` of harness/core/config.py, where they are looked up. Hatch's own table `force-include` would copy them into the
# environment of an editable install, too, and there they would soon be out of date.
DATA = {
    "conf": "harness/conf",
    "results/paper/published_scores.csv": "harness/published/published_scores.csv",
    "results/paper/published_averages.csv": "harness/published/published_averages.csv",
}


class DataHook(BuildHookInterface):
    """Add `DATA` to a wheel; an editable install reads it where it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run before each build; `version` is "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"].update(DATA)
