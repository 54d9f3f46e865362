"""Train a VisionSelector scorer for a frozen model: python -m harness.train model=pocket.

The scorer and its recipe are those of arXiv 2510.16598: visual tokens are scaled by DiffTopK of the scorer's logits.
The loss is that of the language model on answers, plus a term that drives the mask to 0 and 1. An interrupted command
resumes when it is repeated. torchrun and accelerate launch split each batch over GPUs. Runs use the result as
model.scorer=FOLDER.
"""

from collections.abc import Collection
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from harness.core.command import command
from harness.core.config import RunConfig, conf, shipped, validate
from harness.core.console import print_json, say
from harness.core.distributed import launched
from harness.core.errors import UserError, did_you_mean
from harness.core.files import check_place
from harness.core.overrides import parse
from harness.core.rules import at_least, flag, require
from harness.evaluation import preflight as run
from harness.models import checkpoint
from harness.train.recipe import Recipe

if TYPE_CHECKING:
    from harness.models.scorer import VisionSelectorScorer
    from harness.train.conversations import Source

# Choices of data= that draw questions instead of reading a file, by address: this room imports no embedded model
DRAWN = {
    "pocket": "harness.pocket.questions:DrawnQuestions",
    "pocket_clip": "harness.pocket.questions:DrawnClips",
    "pocket_photo": "harness.pocket.questions:DrawnPhotos",
}


def prepare(overrides: list[str]) -> list[str]:
    """Prepare overrides as the main job does, and refuse an unknown recipe, which Hydra would ignore."""
    recipes = [file.stem for file in conf("recipe").glob("*.yaml")]
    for override in parse(overrides):
        if override.key_or_group == "recipe" and not override.is_sweep_override() and override.value() not in recipes:
            raise UserError(f"unknown recipe {override.value()}: {did_you_mean(str(override.value()), recipes)}")
    return run.prepare(overrides)


def main(cfg: DictConfig) -> None:
    """Train or resume, and report the accuracy on held-out conversations."""
    from harness.models import adapter_for
    from harness.models.loading import load
    from harness.train.loop import Training
    from harness.train.state import TrainingFolder, plot

    config, recipe, processes = validate(_run(cfg)), Recipe.of(cfg), launched()
    loaded = load(config.model, processes.in_turn(lambda: checkpoint.download(config.model)))
    adapter = adapter_for(loaded.model)
    source = _source(cfg, adapter.media)
    scorer = _scorer(config, recipe, adapter.hidden_size).to(loaded.device)
    folder = TrainingFolder(Path(str(cfg.out)))
    processes.in_turn(lambda: folder.create(restart=bool(cfg.force)))
    training = Training(loaded, adapter, scorer, source, recipe, processes)
    training.run(folder, _settings(config, recipe, source, loaded.folder))
    if not processes.first:
        return
    image = plot(folder.curve, f"{config.model.name}: {training.steps} steps of {recipe.batch}", recipe.keep)
    first, last = training.curve[0], training.curve[-1]
    accuracies = f"{first['pruned_accuracy']:.1%} untrained, {last['pruned_accuracy']:.1%} after {training.steps} steps"
    say(f"right answers of {recipe.valid} held out, pruned to {recipe.keep:g}: {accuracies}")
    choices = f"method=visionselector keep={recipe.keep:g} model={config.model.name} model.scorer={folder.scorer}"
    say(f"python -m harness {choices}")
    report = {"scorer": str(folder.scorer), "curve": str(folder.curve), "plot": str(image), "model": config.model.name}
    print_json(report | {name: round(value, 6) for name, value in last.items()})


def _source(cfg: DictConfig, shown: Collection[str]) -> "Source":
    if cfg.data in DRAWN:
        module, _, name = DRAWN[cfg.data].partition(":")
        source: Source = getattr(import_module(module), name)(cfg.limit, shown)
        return source
    from harness.train.conversations import Conversations

    media = None if cfg.media is None else Path(str(cfg.media)).expanduser()
    return Conversations(Path(str(cfg.data)).expanduser(), media, shown, cfg.limit)


def _scorer(config: RunConfig, recipe: Recipe, width: int) -> "VisionSelectorScorer":
    """Return the scorer to start from: model.scorer, else one with random weights."""
    import torch

    from harness.models.scorer import VisionSelectorScorer, load_scorer

    if config.model.scorer is not None:
        return load_scorer(shipped(config.model.scorer), width).requires_grad_(True)
    torch.manual_seed(recipe.seed)
    return VisionSelectorScorer(width, recipe.hidden or width // 2)


def _settings(config: RunConfig, recipe: Recipe, source: "Source", folder: Path) -> dict[str, Any]:
    """Return the settings that must not change when a training is resumed."""
    model, scorer = config.model, config.model.scorer
    loading = {f"model.{key}": getattr(model, key) for key in ("dtype", "min_pixels", "max_pixels", "max_frames")}
    loading |= {f"model.{key}": value for key, value in model.frame_rate.items()}
    start = {"model.scorer": None if scorer is None else checkpoint.fingerprint(shipped(scorer))}
    data = {"data": source.digest, "conversations": len(source)}
    return {"model": checkpoint.weights_fingerprint(folder), **loading, **start, **data, **asdict(recipe)}


def _run(cfg: DictConfig) -> DictConfig:
    """Return a run that would use the scorer, so that it is checked as any other run."""
    unused = {"name": "train", "metrics": {"train": None}}
    method = {"name": "visionselector"}
    return OmegaConf.create({"method": method, "model": cfg.model, "keep": cfg.keep, "tasks": unused})


def check(cfg: DictConfig) -> None:
    """Check everything that does not need torch."""
    recipe, config = Recipe.of(cfg), validate(_run(cfg))
    if cfg.data is None:
        raise UserError("data is null: pass a .json or .jsonl of conversations about images, as LLaVA's; see --help")
    if cfg.data not in DRAWN and not Path(str(cfg.data)).expanduser().is_file():
        drawn = " or ".join(f"data={name}" for name in DRAWN)
        raise UserError(f"no file at data={cfg.data}: pass a .json or .jsonl of conversations, or {drawn}")
    if cfg.limit is None and cfg.data in DRAWN:
        raise UserError(f"data={cfg.data} is endless: pass limit=COUNT")
    if cfg.limit is not None:
        require(cfg, {"limit": at_least(1)})
        recipe.steps_of(cfg.limit)
    check_place(cfg.out, "out")
    require(cfg, {"force": flag()})
    checkpoint.check(config.model)


def check_family(cfg: DictConfig) -> None:
    """Refuse a model that a scorer cannot prune; reads its config.json only."""
    run.check_family(run.locate(validate(_run(cfg))))


if __name__ == "__main__":
    command("train", main, (check, check_family), prepare, several=True)
