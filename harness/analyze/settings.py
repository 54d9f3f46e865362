"""The settings that analyses share, and their checks before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.params.items() if key != self.swept)])

    @property
    def value(self) -> Any:
        """Value of the swept parameter; None for a method that is a single point."""
        return self.params[self.swept] if self.swept else None

    @property
    def label(self) -> str:
        """The method with all its parameters."""
        return f"{self.curve} {self.swept}={self.value}" if self.swept else self.curve


def method_points(cfg: DictConfig) -> list[MethodPoint]:
    """Return the methods of a configuration: names, or {name: hybrid, lam: [0.1, 0.5]}, where a list is a curve."""
    points = [point for method in as_list(cfg.methods) for point in _swept(method)]
    labels = [point.label for point in points]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"methods names {', '.join(sorted(twice))} more than once")
    return points


def _swept(method: Any) -> Iterator[MethodPoint]:
    tree = {"name": method} if isinstance(method, str) else method
    if not isinstance(tree, dict) or not isinstance(tree.get("name"), str):
        raise UserError(f"methods takes names, or {{name: hybrid, lam: [0.1, 0.5]}}: not {method}")
    params = {key: value for key, value in tree.items() if key != "name"}
    lists = [key for key, value in params.items() if isinstance(value, list)]
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
    """Return the keep ratios, largest first."""
    return sorted(set(as_list(cfg.keep)), reverse=True)


def trees(cfg: DictConfig) -> list[DictConfig]:
    """Return the configurations that the analysis has to be able to run: of each method, or of the unpruned model."""
    if "methods" not in cfg:
        return [tree_of(cfg, UNPRUNED, None)]
    points = method_points(cfg)
    return [tree_of(cfg, {"name": point.name, **point.params}, keep) for point in points for keep in keeps(cfg)]


def tree_of(cfg: DictConfig, method: dict[str, Any], keep: float | None) -> DictConfig:
    """Return the configuration of one method at one budget."""
    shared = {key: cfg[key] for key in ("model", "tasks", "data_root", "seed")}
    return OmegaConf.create({"method": method, "keep": keep, **shared})


def run_of(cfg: DictConfig, point: MethodPoint, keep: float | None) -> RunConfig:
    """Return the validated configuration of a method at a budget."""
    return validate(tree_of(cfg, {"name": point.name, **point.params}, keep))


def about(cfg: DictConfig) -> RunConfig:
    """Return model, tasks and seed as the validated configuration of an unpruned run."""
    return validate(tree_of(cfg, UNPRUNED, None))


def check(cfg: DictConfig) -> None:
    """Raise UserError for settings that are wrong, as far as that shows without torch."""
    configurations = trees(cfg)
    if not configurations:
        raise UserError("nothing to compare: name at least one of methods and one share in keep")
    run.check(configurations[0])
    for tree in configurations[1:]:
        validate(tree)
    least = {"limit": 1, "min_tokens": 2, "seeds": 1, "resamples": 100, "draws": 1, "bands": 2}
    require(cfg, {key: at_least(number) for key, number in least.items() if key in cfg})
    check_place(cfg.out, "out")


def check_methods(cfg: DictConfig) -> None:
    """Raise UserError for parameters that a method or the model's family refuses; imports torch."""
    for tree in {str(tree.method): tree for tree in trees(cfg)}.values():  # whatever the budget
        config = validate(tree)
        run.check_parameters(config)
        run.check_family(run.locate(config))
