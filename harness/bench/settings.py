"""The settings of a measurement, checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import methods
from harness.core.config import SHIPPED, ModelConfig, RunConfig, as_list, validate
from harness.core.errors import UserError
from harness.core.files import path_of
from harness.core.rules import at_least, one_of, require, text

WEIGHTS = ("real", "random", "tiny")
DEFAULT_KEEP = 0.25
LEAST_TEXT = 8  # text tokens of a prompt, with the two markers of an image
SWEEP = [576, 1024, 2691, 5000, 10000]  # LLaVA-1.5's image, ..., a 1080p screen, ..., a page or a clip
SMALL_SWEEP = [64, 256, 576, 1024]  # for models of a size that a laptop runs


@dataclass(frozen=True)
class Settings:
    """The settings in conf/bench.yaml."""

    model: ModelConfig
    runs: list[RunConfig]  # one for each method and budget, without the unpruned model
    all_methods: bool  # skip methods that the family cannot run instead of refusing them
    weights: str
    sizes: list[int | str]
    images: list[str]
    question: str
    text_tokens: int
    batch: list[int]
    new_tokens: int
    warmup: int
    repeats: int
    seed: int
    out: Path | None
    plots: Path | None


def settings(cfg: DictConfig) -> Settings:
    """Return a composed configuration as `Settings`; UserError if a value is invalid."""
    tree: Any = OmegaConf.to_container(cfg, resolve=True)
    require(tree, {"weights": one_of(WEIGHTS), "question": text()})
    images, sizes, batch = (as_list(tree[key]) for key in ("images", "sizes", "batch"))
    for size in batch:
        require({"batch": size}, {"batch": at_least(1)})
    least = {"new_tokens": 1, "repeats": 1, "warmup": 0, "text_tokens": LEAST_TEXT}
    require(tree, {key: at_least(number) for key, number in least.items()})
    if not batch or not (images or sizes or tree["sizes"] is None):
        raise UserError("nothing to measure: name at least one of sizes or images, and one batch")
    for file in images:
        if not Path(file).is_file():
            raise UserError(f"no image at {file}: images takes files that exist")
    if images and tree["weights"] != "real":
        raise UserError("images need a processor, which comes with real weights: leave them out, or weights")
    if not images and tree["sizes"] is None:
        small = tree["weights"] == "tiny" or str(tree["model"]["pretrained"]).startswith(SHIPPED)
        sizes = SMALL_SWEEP if small else SWEEP
    runs = _runs(tree)
    return Settings(
        model=runs[0].model,
        runs=[run for run in runs if run.pruned],
        all_methods=tree["methods"] == "all",
        sizes=[] if images else sizes,
        images=images,
        batch=batch,
        out=_path(tree, "out"),
        plots=_path(tree, "plots"),
        question=str(tree["question"]),
        **{key: tree[key] for key in ("weights", "text_tokens", "new_tokens", "warmup", "repeats", "seed")},
    )


def _runs(tree: Mapping[str, Any]) -> list[RunConfig]:
    """Return checked configurations of the unpruned model and of every method at every budget."""
    chosen = methods.names() if tree["methods"] == "all" else as_list(tree["methods"])
    selected = [{"name": method} if isinstance(method, str) else method for method in chosen]
    for method in selected:
        if not isinstance(method, dict) or not isinstance(method.get("name"), str):
            raise UserError(f"methods takes names, or {{name:fastv,variant:paper}}: not {method}")
    keeps, tokens = as_list(tree["keep"]), as_list(tree["tokens"])
    if not keeps and not tokens:
        keeps = [DEFAULT_KEEP]
    budgets = [{"keep": keep, "tokens": None} for keep in keeps] + [{"keep": None, "tokens": count} for count in tokens]
    shared = {key: tree[key] for key in ("model", "seed", "positions")}
    shared["tasks"] = {"name": "bench", "metrics": {"none": None}}
    runs: list[dict[str, Any]] = [{"method": {"name": "none"}, **shared}]
    runs += [
        {"method": method, **budget, **shared} for method in selected if method["name"] != "none" for budget in budgets
    ]
    return [validate(OmegaConf.create(run)) for run in runs]


def _path(tree: Mapping[str, Any], key: str) -> Path | None:
    return None if tree[key] is None else path_of(tree[key], key)
