"""The main job: python -m harness method=idpruner model=pocket keep=0.25 tasks=pocket.

Prunes the model's visual tokens, scores it through lmms-eval, prints a table relative to the unpruned model and, on the
last line, one JSON object. `--help` shows every choice; `-m` sweeps; results lie under `runs=results/runs`.
"""

import json
from typing import TYPE_CHECKING

from omegaconf import DictConfig

import methods
from harness import checkpoint
from harness.choices import check_tasks, register
from harness.cli import command
from harness.config import RunConfig, validate
from harness.errors import UserError, one_line

if TYPE_CHECKING:
    from harness.tables import Result


def check(cfg: DictConfig) -> RunConfig:
    """Everything that can be found wrong without importing torch."""
    config = validate(cfg)
    check_tasks(config.tasks)
    checkpoint.check(config.model)
    return config


def check_parameters(config: RunConfig) -> None:
    """The method refuses what it does not know or cannot work with; this imports torch."""
    try:
        methods.load(config.method["name"], **config.params)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error


def main(cfg: DictConfig) -> None:
    """Run one configuration and report it."""
    config = validate(cfg)
    check_parameters(config)  # before the imports that take seconds
    from harness.pipeline import run
    from harness.tables import Result, average, relative

    folder, base = run(config)
    result, baseline = Result.of(folder), Result.of(base)
    percent = relative(result, baseline)
    mean = average(percent)
    print(_table(result, baseline, percent, mean))
    report = {
        "run": str(folder.path),
        "method": result.about["method"],
        "model": config.model.name,
        "budget": result.about["budget"],
        "scores": result.metrics["scores"],
        "relative": {task: None if p is None else round(p, 2) for task, p in percent.items()},
        "average": None if mean is None else round(mean, 2),
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
            f"{_percent(share):>10}{tokens['kept']:>12.1f} of {tokens['all']:.1f}"
        )
    return "\n".join([*lines, f"{'average':<{width}}{'':>30}{_percent(mean):>10}"])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f} %"


if __name__ == "__main__":
    command("config", main, check, register)
