"""What can be chosen: python -m harness.list prints every method with its stage, needs and parameters."""

import json
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig

import methods
from harness.cli import command


def describe(name: str) -> dict[str, Any]:
    """What a method is with its defaults: stage, needs, parameters, and which of these its authors did not publish."""
    method = methods.load(name)
    return {
        "name": name,
        "stage": method.stage,
        "needs": sorted(signal.value for signal in method.needs),
        "servable": method.servable,
        "flash": method.flash_compatible,
        "attention_maps": method.attention_maps,
        "params": {field.name: getattr(method, field.name) for field in fields(method) if field.init},
        "not_public": sorted(method.not_public),
    }


def main(cfg: DictConfig) -> None:
    """Print the table for people and the same as one JSON line."""
    described = [describe(name) for name in methods.names()]
    print(f"{'method':<18}{'stage':<10}{'needs':<36}parameters")
    for method in described:
        hidden = method["not_public"]
        params = " ".join(f"{k}={v}{'*' if k in hidden else ''}" for k, v in method["params"].items())
        print(f"{method['name']:<18}{method['stage']:<10}{', '.join(method['needs']) or '-':<36}{params or '-'}")
    print("* not public: our choice where the authors give no value")
    print(json.dumps({"methods": described}))


if __name__ == "__main__":
    command("list", main)
