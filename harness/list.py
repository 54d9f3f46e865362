"""What can be chosen: python -m harness.list prints every method with its stage, needs and parameters."""

import json
from dataclasses import MISSING, fields
from typing import Any

from omegaconf import DictConfig

import methods
from harness.cli import command


def describe(name: str) -> dict[str, Any]:
    """A method's stage, needs and parameters with their defaults."""
    cls = methods.get(name)
    params = {f.name: None if f.default is MISSING else f.default for f in fields(cls) if f.init}
    stage = cls.stage.fget(cls) if isinstance(cls.stage, property) else cls.stage
    return {"name": name, "stage": stage, "needs": sorted(signal.value for signal in cls.needs), "params": params}


def main(cfg: DictConfig) -> None:
    """Print the table for people and the same as one JSON line."""
    described = [describe(name) for name in methods.names()]
    print(f"{'method':<18}{'stage':<10}{'needs':<28}parameters")
    for method in described:
        params = " ".join(f"{key}={value}" for key, value in method["params"].items())
        print(f"{method['name']:<18}{method['stage']:<10}{', '.join(method['needs']) or '-':<28}{params or '-'}")
    print(json.dumps({"methods": described}))


if __name__ == "__main__":
    command("list", main)
