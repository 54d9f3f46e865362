"""What a command would run, without running it (dry_run=true): its runs, their visual tokens and their operations.

No weights are loaded, nothing is downloaded or written. How many tokens an image has depends on its size, so the
estimate is for one question about one picture.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_vl_utils.vision_process import smart_resize

from harness.core.config import RunConfig
from harness.core.console import table_lines
from harness.core.distributed import only_one
from harness.core.errors import UserError, one_line
from harness.core.files import digest, slug
from harness.evaluation.pruner import checked_method, random_method
from harness.evaluation.sweep_plan import of_folders, unpruned, wanted_runs
from harness.models import adapter_class, checkpoint
from harness.models.cost import architectures, count
from harness.models.loading import config_in
from harness.models.preprocessing import PixelLimits
from harness.results.submissions import LIVE, PlannedRun, list_runs
from methods.base import Method, Signal
from methods.resize import smaller
from methods.tokens import Grid, num_tokens

WIDTH, HEIGHT = 1024, 768  # pixels of the picture
TEXT, ANSWER = 64, 16  # tokens of the words around it, as harness.bench has them, and of most benchmarks' answers
TERA = 1e12


@dataclass(frozen=True)
class Cost:
    """What a question costs, as far as the model's configuration says; an absolute budget is known without it."""

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


def show(sweep: Sequence[tuple[RunConfig, list[str]]]) -> None:
    """Print a line for every run, what all of them cost, and the same as one JSON line."""
    only_one("dry_run=true")
    rows = listed(sweep)
    cells = [(row.state, _tokens(row.cost), _tera(row.cost.flops), row.run, " ".join(row.overrides)) for row in rows]
    head = ("state", "visual tokens", "TFLOPs", "run", "overrides")
    print("\n".join(table_lines([head, *cells], left=None)))
    for note in dict.fromkeys(note for row in rows for note in row.cost.notes):
        print(f"note: {note}")
    left = [row.cost.flops for row in rows if row.state not in ("done", *LIVE)]
    known = [flops for flops in left if flops is not None]
    print(", ".join(f"{number} {state}" for state, number in Counter(row.state for row in rows).items()))
    print(
        f"{_tera(sum(known))} TFLOPs for one question in each of {len(known)} of the {len(left)} runs to come: "
        f"a picture of {WIDTH} x {HEIGHT} pixels, {TEXT} tokens of text, {ANSWER} of an answer"
    )
    total = {"left": len(left), "counted": len(known), "tflops_per_question": sum(known) / TERA}
    print(json.dumps({"dry_run": True, **total, "runs": [_as_json(row) for row in rows]}), flush=True)


def listed(sweep: Sequence[tuple[RunConfig, list[str]]]) -> list[Row]:
    """Every run of a sweep, once, those of baselines first; UserError for one that its model cannot do."""
    wanted = wanted_runs(sweep, _plans)
    found = {run.key: run for folder in {config.runs for config, _ in sweep} for run in list_runs(Path(folder))}
    rows = []
    for config, plan in wanted:
        run = found.get(plan.key)
        state = "to do" if run is None or (config.force and run.state == "done") else run.state
        rows.append(Row(plan.run if run is None else run.run, state, plan.overrides, cost(config)))
    return rows


def cost(config: RunConfig) -> Cost:
    """Tokens and operations of one question; UserError for a method that the model cannot run."""
    folder = checkpoint.local_folder(config.model)
    found = _configuration(config) if folder is None else (config_in(folder), None)
    if found is None:
        where = f"{config.model.pretrained} is not here, nor is its configuration"
        return Cost(None, config.tokens, notes=(f"{where}: its tokens and operations are known once it is",))
    (about, hidden), notes = found, []
    method = _checked(config, about) if folder is None else checked_method(config, folder)
    if folder is None and Signal.IMPORTANCE in method.needs and config.model.scorer is None:
        notes.append(f"{method.name} needs a learned scorer: model.scorer=FOLDER")
    grids = _grids(about, config)
    if grids is None:
        notes.append(f"into how many tiles {about.model_type} cuts the picture is not known here")
        return Cost(None, config.tokens, notes=tuple(notes))
    visual = num_tokens(grids)
    kept = config.budget.count(visual)
    if method.stage == "pixels":
        kept = num_tokens(smaller(grids, kept))
    try:
        flops = count(about, grids, TEXT, method if config.pruned else None, config.budget, ANSWER, hidden).total
    except ValueError as error:  # of a family that is not counted
        return Cost(visual, kept, notes=(*notes, one_line(error)))
    return Cost(visual, kept, flops, tuple(notes))


def _plans(config: RunConfig) -> list[PlannedRun]:
    """By their folders; of a model that is not here, whose weights' digest is in their names, without one."""
    if checkpoint.local_folder(config.model) is not None:
        return of_folders(config)
    place = f"{slug(config.model.name)}/{slug(config.tasks.name)}"
    runs = [unpruned(config), config] if config.pruned else [config]
    named = [(run, slug(run.method["name"])) for run in runs]
    return [PlannedRun(_key(run), f"{place}/{name}-{run.budget.label}") for run, name in named]


def _key(config: RunConfig) -> str:
    drawn = {} if config.pruned else {"seed": 0, "positions": "keep", "keep": None}
    return digest({**asdict(config), **drawn})


def _configuration(config: RunConfig) -> tuple[Any, int | None] | None:
    """The configuration of a model whose weights are not here, and its scorer's width; None if it is not, either."""
    cached = checkpoint.cached_config(config.model)
    if cached is not None:
        return config_in(cached), None
    name = architectures.of_checkpoint(config.model.pretrained)
    return None if name is None else (architectures.config_of(name), architectures.scorer_hidden(name))


def _checked(config: RunConfig, about: Any) -> Method:
    try:
        method, family = random_method(config), adapter_class(about.model_type)
        family.check(method, about)
        family.check_positions(config.positions, method)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error
    return method


def _grids(about: Any, config: RunConfig) -> list[Grid] | None:
    """(t, h, w) in tokens of the picture, as the family resizes it; None for one that cuts tiles."""
    vision = about.vision_config
    if about.model_type == "llava":
        side = vision.image_size // vision.patch_size
        return [(1, side, side)]
    if not hasattr(vision, "spatial_merge_size"):
        return None
    given = {key: getattr(config.model, key) for key in ("min_pixels", "max_pixels")}
    limits = PixelLimits(**{key: value for key, value in given.items() if value is not None})
    side = vision.patch_size * vision.spatial_merge_size
    height, width = smart_resize(HEIGHT, WIDTH, side, limits.min_pixels, limits.max_pixels)
    return [(1, height // side, width // side)]


def _tokens(cost: Cost) -> str:
    known = [str(number) for number in (cost.kept, cost.visual) if number is not None]
    return " of ".join(known) or "-"


def _tera(flops: int | None) -> str:
    return "-" if flops is None else f"{flops / TERA:.4g}"


def _as_json(row: Row) -> dict[str, Any]:
    tokens, flops = {"visual_tokens": row.cost.visual, "kept_tokens": row.cost.kept}, row.cost.flops
    operations = {"tflops": None if flops is None else flops / TERA}
    return {"run": row.run, "state": row.state, "overrides": row.overrides} | tokens | operations
