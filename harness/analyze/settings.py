"""What to analyse, and everything that can be found wrong with it before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.core.config import RunConfig, as_list, validate
from harness.core.errors import UserError
from harness.core.files import check_place
from harness.core.rules import at_least, require
from harness.evaluation import preflight as run

UNPRUNED = {"name": "none"}


@dataclass(frozen=True)
class MethodPoint:
    """A method with its parameters; `swept` is the one along which it is a point of a curve."""

    name: str
    params: dict[str, Any]
    swept: str | None = None

    @property
    def curve(self) -> str:
        """The method and the parameters that stay: "hybrid mapping=quota"."""
        return " ".join([self.name, *(f"{key}={it}" for key, it in self.params.items() if key != self.swept)])

    @property
    def value(self) -> Any:
        """Where on the curve it lies; None for a method that is one point."""
        return self.params[self.swept] if self.swept else None

    @property
    def label(self) -> str:
        """The method with all its parameters."""
        return f"{self.curve} {self.swept}={self.value}" if self.swept else self.curve


def contestants(cfg: DictConfig) -> list[MethodPoint]:
    """The methods of a configuration: names, or {name: hybrid, lam: [0.1, 0.5]}, where a list is a curve."""
    found = [one for each in as_list(cfg.methods) for one in _swept(each)]
    labels = [one.label for one in found]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"methods names {', '.join(sorted(twice))} more than once")
    return found


def _swept(method: Any) -> Iterator[MethodPoint]:
    tree = {"name": method} if isinstance(method, str) else method
    if not isinstance(tree, dict) or not isinstance(tree.get("name"), str):
        raise UserError(f"methods takes names, or {{name: hybrid, lam: [0.1, 0.5]}}: not {method}")
    params = {key: it for key, it in tree.items() if key != "name"}
    lists = [key for key, it in params.items() if isinstance(it, list)]
    if len(lists) > 1:
        raise UserError(f"methods: {tree['name']} has lists for {' and '.join(lists)}, a curve has one parameter")
    if not lists:
        yield MethodPoint(tree["name"], params)
        return
    swept = lists[0]
    if not params[swept]:
        raise UserError(f"methods: {tree['name']} has an empty list for {swept}")
    for value in params[swept]:
        yield MethodPoint(tree["name"], {**params, swept: value}, swept)


def keeps(cfg: DictConfig) -> list[float]:
    """The shares of the visual tokens that stay, largest first."""
    return sorted(set(as_list(cfg.keep)), reverse=True)


def trees(cfg: DictConfig) -> list[DictConfig]:
    """The runs of `python -m harness` that the analysis needs to be possible: of each method, or of the plain model."""
    if "methods" not in cfg:
        return [tree_of(cfg, UNPRUNED, None)]
    asked = contestants(cfg)
    return [tree_of(cfg, {"name": one.name, **one.params}, keep) for one in asked for keep in keeps(cfg)]


def tree_of(cfg: DictConfig, method: dict[str, Any], keep: float | None) -> DictConfig:
    """One of them."""
    shared = {key: cfg[key] for key in ("model", "tasks", "data_root", "seed")}
    return OmegaConf.create({"method": method, "keep": keep, **shared})


def run_of(cfg: DictConfig, one: MethodPoint, keep: float | None) -> RunConfig:
    """A method at a budget, typed."""
    return validate(tree_of(cfg, {"name": one.name, **one.params}, keep))


def about(cfg: DictConfig) -> RunConfig:
    """Model, tasks and seed, typed."""
    return validate(tree_of(cfg, UNPRUNED, None))


def check(cfg: DictConfig) -> None:
    """Everything that can be found wrong without importing torch."""
    wanted = trees(cfg)
    if not wanted:
        raise UserError("nothing to compare: name at least one of methods and one share in keep")
    run.check(wanted[0])
    for tree in wanted[1:]:
        validate(tree)
    least = {"limit": 1, "min_tokens": 2, "seeds": 1, "resamples": 100, "draws": 1, "bands": 2}
    require(cfg, {key: at_least(number) for key, number in least.items() if key in cfg})
    check_place(Path(str(cfg.out)), "out")


def check_methods(cfg: DictConfig) -> None:
    """Methods refuse parameters, and the model's family what it cannot supply; this imports torch."""
    for tree in {str(tree.method): tree for tree in trees(cfg)}.values():  # whatever the budget
        run.check_parameters(tree)
        run.check_family(tree)
