"""List what a command would run (dry_run=true): its runs, their visual tokens and their operations.

No weights are loaded, nothing is downloaded or written. How many tokens an image has depends on its size, so the
estimate is for one question about one picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_vl_utils.vision_process import smart_resize

from harness.core.config import RunConfig
from harness.core.console import print_json, say, table_lines
from harness.core.distributed import only_one
from harness.core.errors import one_line
from harness.core.files import digest, slug
from harness.evaluation.preflight import LocatedRun
from harness.evaluation.progress import in_words
from harness.evaluation.pruner import checked_method, method_without_weights
from harness.evaluation.run_times import Estimate, Measured, estimate
from harness.evaluation.sweep_plan import of_folders, wanted_runs
from harness.models import adapter_class, checkpoint
from harness.models.cost import architectures, count
from harness.models.cost.vision import IN_CROPS, tokens_of_side
from harness.models.limits import PixelLimits
from harness.models.model_folder import ModelFolder
from harness.results.submissions import LIVE, PlannedRun, Run, list_runs
from methods import per_tile
from methods.base import Signal
from methods.resize import smaller
from methods.tokens import Grid, num_tokens

WIDTH, HEIGHT = 1024, 768  # pixels of the picture
TEXT, ANSWER = 64, 16  # tokens of the text around it, as in harness.bench, and of most benchmarks' answers
TERA = 1e12


@dataclass(frozen=True)
class Cost:
    """What a question costs, as far as the model's configuration says; None is unknown."""

    visual: int | None = None
    kept: int | None = None
    flops: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A run of the sweep: `state` is that of `harness.status`, "to do" where nothing was planned or begun."""

    run: str
    state: str
    overrides: list[str]
    cost: Cost
    config: RunConfig


def show(sweep: Sequence[tuple[LocatedRun, list[str]]]) -> None:
    """Print a line for every run, what all of them cost, and the same as one JSON line."""
    only_one("dry_run=true")
    existing = _existing(sweep)
    rows = listed(sweep, existing)
    cells = [(row.state, _tokens(row.cost), _tera(row.cost.flops), row.run, " ".join(row.overrides)) for row in rows]
    head = ("state", "visual tokens", "TFLOPs", "run", "overrides")
    print("\n".join(table_lines([head, *cells], left=None)))
    for note in dict.fromkeys(note for row in rows for note in row.cost.notes):
        say(f"note: {note}")
    left = [row.cost.flops for row in rows if row.state not in ("done", *LIVE)]
    counted = [flops for flops in left if flops is not None]
    print(", ".join(f"{number} {state}" for state, number in Counter(row.state for row in rows).items()))
    print(
        f"{_tera(sum(counted))} TFLOPs for one question in each of {len(counted)} of the {len(left)} runs to come, "
        f"assuming a picture of {WIDTH} x {HEIGHT} pixels, {TEXT} tokens of text and {ANSWER} of an answer"
    )
    time = _time(rows, existing)
    if time is not None:
        measured = time.measured
        print(f"{in_words(time.seconds)} for all of them on {measured.device}, at the speed of {measured.run}")
    elif left:
        print("how long they take can be said once one run of this model and these tasks has finished here")
    hours = {"hours": None if time is None else round(time.seconds / 3600, 3)}
    total = {"left": len(left), "counted": len(counted), "tflops_per_question": sum(counted) / TERA, **hours}
    print_json({"dry_run": True, **total, "runs": [_as_json(row) for row in rows]})


def _existing(sweep: Sequence[tuple[LocatedRun, list[str]]]) -> dict[Path, list[Run]]:
    """Return the runs that were planned or started, by the folder `runs`."""
    folders = dict.fromkeys(Path(run.config.runs) for run, _ in sweep)
    return {folder: list_runs(folder) for folder in folders}


def listed(
    sweep: Sequence[tuple[LocatedRun, list[str]]], existing: Mapping[Path, Sequence[Run]] | None = None
) -> list[Row]:
    """Return every run of a sweep once, baselines first; UserError for one that its model cannot do."""
    folders = _existing(sweep) if existing is None else existing
    by_key = {run.key: run for runs in folders.values() for run in runs}
    rows = []
    for located, planned in wanted_runs(sweep, _plans):
        run = by_key.get(planned.key)
        state = "to do" if run is None or (located.config.force and run.state in ("done", "damaged")) else run.state
        name = planned.run if run is None else run.run
        rows.append(Row(name, state, planned.overrides, cost(located), located.config))
    return rows


def _time(rows: Sequence[Row], existing: Mapping[Path, Sequence[Run]]) -> Estimate | None:
    """Estimate how long the runs to come take, by all finished runs next to them."""
    flops = {(Path(row.config.runs), row.run): row.cost.flops for row in rows if row.state == "done"}
    finished = [
        (measured, flops.get((folder, run.run)))
        for folder, runs in existing.items()
        for run in runs
        if run.state == "done" and (measured := Measured.of(folder / run.run, run.run)) is not None
    ]
    return estimate([(row.config, row.cost.flops) for row in rows if row.state not in ("done", *LIVE)], finished)


def cost(run: LocatedRun) -> Cost:
    """Estimate tokens and operations of one question; UserError for a method that the model cannot run."""
    config = run.config
    architecture = _architecture(config) if run.model is None else (run.model.config, None)
    if architecture is None:
        where = f"{config.model.pretrained} is not here, nor is its configuration"
        return Cost(None, config.tokens, notes=(f"{where}: its tokens and operations are known once it is",))
    (model, scorer_hidden), notes = architecture, []
    method = method_without_weights(config, model) if run.model is None else checked_method(config, run.model)
    if run.model is None and Signal.IMPORTANCE in method.needs and config.model.scorer is None:
        notes.append(f"{method.name} needs a learned scorer: model.scorer=FOLDER")
    grids = _grids(model, config)
    if grids is None:
        notes.append(f"into how many tiles {model.model_type} cuts the picture is not known here")
        return Cost(None, config.tokens, notes=tuple(notes))
    visual, tiled = num_tokens(grids), _tiled(model, config)
    kept = per_tile.count(method, config.budget, grids, tiled.get("crops"))
    if method.stage == "pixels":
        kept = num_tokens(smaller(grids, kept))
    try:
        pruner = method if config.pruned else None
        flops = count(model, grids, TEXT, pruner, config.budget, ANSWER, scorer_hidden, **tiled).total
    except ValueError as error:  # of a family that is not counted
        return Cost(visual, kept, notes=(*notes, one_line(error)))
    return Cost(visual, kept, flops, tuple(notes))


def _plans(run: LocatedRun) -> list[PlannedRun]:
    """Return a baseline and its run, by their folders; without digests if the model's weights are not here."""
    if run.model is not None:
        return of_folders(run)
    place = f"{slug(run.config.model.name)}/{slug(run.config.tasks.name)}"
    configs = [run.baseline.config, run.config] if run.config.pruned else [run.config]
    named = [(config, slug(config.method["name"])) for config in configs]
    return [PlannedRun(_key(config), f"{place}/{name}-{config.budget.label}") for config, name in named]


def _key(config: RunConfig) -> str:
    seed = config.seed if config.sample == "random" else 0  # random questions depend on it, an unpruned answer does not
    model = {**asdict(config.model), "newlines": None}
    of_baseline = {} if config.pruned else {"model": model, "seed": seed, "positions": "keep", "keep": None}
    return digest({**asdict(config), **of_baseline})


def _architecture(config: RunConfig) -> tuple[Any, int | None] | None:
    """Return the configuration of a model whose weights are not here and its scorer's width; None if unknown."""
    cached = checkpoint.cached_folder(config.model.pretrained, config.model.revision)
    if cached is not None:
        return ModelFolder(cached).config, None
    name = architectures.of_checkpoint(config.model.pretrained)
    return None if name is None else (architectures.config_of(name), architectures.scorer_hidden(name))


def _grids(model: Any, config: RunConfig) -> list[Grid] | None:
    """Return (t, h, w) in tokens of the picture, as the family resizes it; None for one that cuts tiles."""
    vision = model.vision_config
    if model.model_type == "llava":
        side = tokens_of_side(model)
        return [(1, side, side)]
    if model.model_type in IN_CROPS:
        return adapter_class(model.model_type).packing(model, HEIGHT, WIDTH).grids  # type: ignore[attr-defined]
    if not hasattr(vision, "spatial_merge_size"):
        return None
    pixels = {key: getattr(config.model, key) for key in ("min_pixels", "max_pixels")}
    limits = PixelLimits(**{key: value for key, value in pixels.items() if value is not None})
    side = vision.patch_size * vision.spatial_merge_size
    height, width = smart_resize(HEIGHT, WIDTH, side, limits.min_pixels, limits.max_pixels)
    return [(1, height // side, width // side)]


def _tiled(model: Any, config: RunConfig) -> dict[str, Any]:
    """Return the number of crops of the picture and its newline rows, as arguments of `count`, if it is cut into tiles.

    With newlines=follow, some of these rows stay; none is counted.
    """
    if model.model_type not in IN_CROPS:
        return {}
    packing = adapter_class(model.model_type).packing(model, HEIGHT, WIDTH)  # type: ignore[attr-defined]
    ends = packing.placeholders.rows - num_tokens(packing.grids)
    return {"crops": packing.crops, "newlines": (ends, ends if config.model.newlines == "keep" else 0)}


def _tokens(cost: Cost) -> str:
    counts = [str(number) for number in (cost.kept, cost.visual) if number is not None]
    return " of ".join(counts) or "-"


def _tera(flops: int | None) -> str:
    return "-" if flops is None else f"{flops / TERA:.4g}"


def _as_json(row: Row) -> dict[str, Any]:
    tokens, flops = {"visual_tokens": row.cost.visual, "kept_tokens": row.cost.kept}, row.cost.flops
    operations = {"tflops": None if flops is None else flops / TERA}
    return {"run": row.run, "state": row.state, "overrides": row.overrides} | tokens | operations
