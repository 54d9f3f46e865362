"""Evaluate a model with pruned visual tokens: python -m harness method=idpruner model=pocket keep=0.25 tasks=pocket.

The command scores the model with lmms-eval, prints a table relative to the unpruned model, and ends with one JSON line.
`--help` shows every choice, `-m` sweeps, and results are written below `runs=results/runs`.
"""

from functools import partial
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from harness.core.command import command
from harness.core.config import validate
from harness.core.console import print_json, say, table_lines
from harness.core.distributed import launched
from harness.core.escape import visible
from harness.evaluation.preflight import check_parameters, prepare
from harness.evaluation.run_context import RunContext

if TYPE_CHECKING:
    from harness.results.result import Result


def preview(context: RunContext, jobs: list[tuple[DictConfig, list[str]]]) -> None:
    """List what a command would run."""
    from harness.evaluation.dry_run import show
    from harness.evaluation.sweep_plan import shared

    _, own = shared([point for _, point in jobs])
    show(list(zip((context.located(validate(cfg)) for cfg, _ in jobs), own, strict=True)))


def use_slurm(context: RunContext) -> None:
    """Register the Slurm launcher with Hydra."""
    from harness.evaluation import slurm

    slurm.register(context)


def main(context: RunContext, cfg: DictConfig) -> None:
    """Run one configuration and print its report."""
    from harness.evaluation.runner import run
    from harness.results.labels import sample_notes
    from harness.results.parameters import unusual
    from harness.results.result import Result, average, failures, relative, unproven
    from harness.results.run_folder import METRICS

    config = validate(cfg)
    with context.progress.job():
        folder, base = run(context.plan(config), context)
    if not launched().first:
        return
    context.finished += [folder.path for folder in (base, folder) if folder.path not in context.finished]
    result, baseline = Result.of(folder), Result.of(base)
    percent = relative(result, baseline)
    mean = average(percent)
    print(_table(result, baseline, percent, mean))
    runs = [baseline, result][result.is_baseline :]
    for note in [*_overlaps(result), *sample_notes([result]), *failures(runs), *unproven(runs)]:
        say(f"note: {note}")
    report = {
        "run": str(folder.path),
        "method": result.about["method"],
        "parameters": unusual(result.about),
        "model": config.model.name,
        "budget": result.about["budget"],
        "scores": result.metrics["scores"],
        "relative": {task: None if p is None else round(p, 2) for task, p in percent.items()},
        "average": None if mean is None else round(mean, 2),
        "failed": sum(result.failed.values()),
    }
    print_json(report, folder.path / METRICS)


def end(context: RunContext, jobs: list[list[str]], failed: list[int], done: int) -> None:
    """Print the runs of a sweep side by side, name its jobs that failed, and end with one JSON line.

    Of an interrupted sweep only the first `done` jobs ran to their end.
    """
    if not launched().first or not (context.finished or failed):
        return  # the other processes; a sweep that was only submitted
    from harness.evaluation.sweep_plan import shared
    from harness.results.formats import markdown
    from harness.results.result import collect
    from harness.tables import of_runs

    for table in of_runs(collect(context.finished))[0] if context.finished else ():
        print(f"\n{markdown(table)}")
    common, own = shared(jobs)
    names = [" ".join(own[number] or common) for number in failed]
    for name in names:
        say(f"failed: {name}")
    for runs in context.folders:
        say(f"python -m harness.report runs={runs} out=report.html")
    left = len(jobs) - done
    if left:
        say(f"interrupted: {left} of {len(jobs)} jobs are left; the same command goes on")
    counts = {"finished": done - len(failed), **({"left": left} if left else {})}
    print_json({**counts, "failed": names, "runs": context.folders})


def _table(result: "Result", baseline: "Result", percent: dict[str, float | None], mean: float | None) -> str:
    from harness.results.labels import title

    about, rows = result.about, [("task", "questions", "baseline", "score", "relative", "visual tokens")]
    for task, share in percent.items():
        tokens = result.metrics["visual_tokens"][task]
        counts = f"{tokens['kept']:.1f} of {tokens['all']:.1f}{_token_remarks(tokens)}"
        scores = (f"{baseline.score(task):.4f}", f"{result.score(task):.4f}")
        rows.append((task, str(result.metrics["questions"][task]), *scores, _percent(share), counts))
    name = about["method"] if result.is_baseline else title(result)
    heading = visible(f"{name} at {about['budget']} on {about['model']}")
    return "\n".join(["", heading, *table_lines([*rows, ("average", "", "", "", _percent(mean), "")], left=(0, 5))])


def _overlaps(result: "Result") -> list[str]:
    """Return a note for each file that was made from images of a task that the run evaluates."""
    notes = []
    for name, metadata in result.about.get("made_from", {}).items():
        if common := sorted(set(metadata.get("tasks", "").split(",")) & set(result.metrics["scores"])):
            notes.append(f"{name} was made from images of {', '.join(common)}, which this run evaluates")
    return notes


def _token_remarks(tokens: dict[str, float]) -> str:
    """Return K if `resize` missed it, and the tokens per layer if early decoder layers see more than is kept."""
    kept = tokens["kept"]
    budget, per_layer = tokens.get("budget", kept), tokens.get("per_layer", kept)
    remarks = [f"K: {budget:.1f}"] * (budget != kept) + [f"{per_layer:.1f} per layer"] * (per_layer > kept)
    return f" ({', '.join(remarks)})" if remarks else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f} %"


if __name__ == "__main__":
    context = RunContext()
    command(
        "config",
        partial(main, context),
        (context.check, lambda cfg: check_parameters(validate(cfg)), context.check_family),
        prepare,
        launchers={"slurm": partial(use_slurm, context)},
        preview=partial(preview, context),
        ended=partial(end, context),
    )
