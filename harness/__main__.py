"""The main job: python -m harness method=idpruner model=pocket keep=0.25 tasks=pocket.

Prunes the model's visual tokens, scores it through lmms-eval, prints a table relative to the unpruned model and, on the
last line, one JSON object. `--help` shows every choice; `-m` sweeps; results lie under `runs=results/runs`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

import methods
from harness.core.command import command, parse
from harness.core.config import validate
from harness.core.config_groups import check_tasks, register
from harness.core.distributed import launched
from harness.core.errors import UserError, one_line
from harness.evaluation import datasets
from harness.evaluation.task_suite import check_scoring, check_versions, refuse_group
from harness.models import checkpoint
from harness.results.run_folder import check_place

if TYPE_CHECKING:
    from harness.results.result import Result


def prepare(overrides: list[str]) -> list[str]:
    """Choices that need no file in conf/, and the folder's name for weights that would else be called pocket."""
    parsed = parse(overrides)
    for name in (name for o in parsed if o.key_or_group == "tasks" for name in _listed(o)):
        refuse_group(name)
    given = {override.key_or_group for override in parsed}
    if "model.pretrained" in given and not given & {"model", "model.name"}:
        overrides = [*overrides, "model.name='${basename:${model.pretrained}}'"]
    return register(overrides)


def _listed(override: Override) -> list[str]:
    """The names in `tasks=`, be it one, a list or a sweep."""
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    if [] in values:
        raise UserError("tasks=[] names no task: choose at least one, as in tasks=pocket_existence")
    return [str(name) for value in values for name in (value if isinstance(value, list) else [value])]


def check(cfg: DictConfig) -> None:
    """Everything that can be found wrong without importing torch."""
    config = validate(cfg)
    check_tasks(config.tasks)
    check_versions()
    check_scoring(config.tasks, config.limit)
    datasets.local(config.tasks, config.data_root)
    check_place(Path(config.runs))
    (checkpoint.at_hand if config.dry_run else checkpoint.check)(config.model)


def check_parameters(cfg: DictConfig) -> None:
    """The method refuses what it does not know or cannot work with; this imports torch."""
    config = validate(cfg)
    try:
        methods.load(config.method["name"], **config.params)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error


def check_family(cfg: DictConfig) -> None:
    """The model's family refuses what it cannot supply, from config.json alone, and the method what nobody said."""
    from harness.evaluation import reuse
    from harness.evaluation.pruner import checked_method, left_beside

    config = validate(cfg)
    if config.dry_run:
        return  # which says it of a model that is not here, too
    beside = left_beside(config).values()
    reuse.expect(config.model, checked_method(config, checkpoint.described(config.model, beside)))


def preview(jobs: list[tuple[DictConfig, list[str]]]) -> None:
    """List what a command would run."""
    from harness.evaluation.dry_run import show
    from harness.evaluation.sweep_plan import shared

    _, own = shared([point for _, point in jobs])
    show(list(zip((validate(cfg) for cfg, _ in jobs), own, strict=True)))


def main(cfg: DictConfig) -> None:
    """Run one configuration and report it."""
    from harness.evaluation.runner import run
    from harness.results.result import Result, average, failures, relative, unproven

    config = validate(cfg)
    folder, base = run(config)
    if not launched().first:
        return
    result, baseline = Result.of(folder), Result.of(base)
    percent = relative(result, baseline)
    mean = average(percent)
    print(_table(result, baseline, percent, mean))
    shown = [baseline, result][result.is_baseline :]
    for note in [*_overlaps(result), *_first_ones(config.limit), *failures(shown), *unproven(shown)]:
        print(f"note: {note}")
    report = {
        "run": str(folder.path),
        "method": result.about["method"],
        "model": config.model.name,
        "budget": result.about["budget"],
        "scores": result.metrics["scores"],
        "relative": {task: None if p is None else round(p, 2) for task, p in percent.items()},
        "average": None if mean is None else round(mean, 2),
        "failed": sum(result.failed.values()),
    }
    print(json.dumps(report), flush=True)


def _table(result: "Result", baseline: "Result", percent: dict[str, float | None], mean: float | None) -> str:
    width = max(map(len, [*percent, "average"])) + 2
    about = result.about
    lines = [
        f"\n{about['method']} at {about['budget']} on {about['model']}",
        f"{'task':<{width}}{'questions':>10}{'baseline':>10}{'score':>10}{'relative':>10}{'visual tokens':>22}",
    ]
    for task, share in percent.items():
        tokens = result.metrics["visual_tokens"][task]
        lines.append(
            f"{task:<{width}}{result.metrics['questions'][task]:>10}{baseline.score(task):>10.4f}{result.score(task):>10.4f}"
            f"{_percent(share):>10}{tokens['kept']:>12.1f} of {tokens['all']:.1f}{_missed(tokens)}"
        )
    return "\n".join([*lines, f"{'average':<{width}}{'':>30}{_percent(mean):>10}"])


def _overlaps(result: "Result") -> list[str]:
    """What a file that a parameter names was made from should not be what is asked about."""
    notes = []
    for name, about in result.about.get("made_from", {}).items():
        if both := sorted(set(about.get("tasks", "").split(",")) & set(result.metrics["scores"])):
            notes.append(f"{name} was made from images of {', '.join(both)}, which this run asks about")
    return notes


def _first_ones(limit: int | None) -> list[str]:
    """A limited run is a trial; lmms-eval takes questions from the front."""
    if limit is None:
        return []
    return [f"limit={limit} asks the first questions of each task, and many tasks are sorted: no sample of all of them"]


def _missed(tokens: dict[str, float]) -> str:
    """K where it is not what was kept (`resize`), and what it is worth where early decoder layers see everything."""
    kept = tokens["kept"]
    budget, worth = tokens.get("budget", kept), tokens.get("per_layer", kept)
    return "".join([f" (K: {budget:.1f})" * (budget != kept), f" (a layer sees {worth:.1f})" * (worth > kept)])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f} %"


if __name__ == "__main__":
    command("config", main, (check, check_parameters, check_family), prepare, cluster=True, preview=preview)
