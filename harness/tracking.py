"""Finished runs in Weights & Biases, through lmms-eval's own logger."""

import json
from collections.abc import Sequence
from typing import Any

from harness.core.errors import UserError, one_line
from harness.results.labels import labels
from harness.results.result import Result
from harness.results.run_folder import RESPONSES


def log_to_wandb(results: Sequence[Result], project: str) -> list[str]:
    """Log every run with its configuration, scores and answers; returns the names of the W&B runs.

    Where they go is W&B's own business: WANDB_MODE=offline keeps them here, WANDB_ENTITY names the team.
    """
    try:
        import wandb
        from lmms_eval.loggers import WandbLogger
    except ImportError as error:
        raise UserError(f"wandb={project} needs wandb: pip install wandb ({one_line(error)})") from error
    names = labels(results)
    logged = []
    for result in results:
        place = [str(result.about["model"]), str(result.about["config"]["tasks"]["name"])]
        name = " ".join(filter(None, [names[result.hash], result.budget]))
        try:
            about = {"name": name, "group": "/".join(place), "tags": place, "config": result.about}
            logger = WandbLogger(project=project, reinit="finish_previous", **about)
            found = as_lmms_eval(result)
            logger.post_init(found)
            logger.log_eval_result()
            logger.log_eval_samples(samples(result, found["configs"]))
            wandb.finish()
        except wandb.Error as error:
            raise UserError(f"wandb={project}: {one_line(error)}; WANDB_MODE=offline logs without a server") from error
        logged.append(name)
    return logged


def as_lmms_eval(result: Result) -> dict[str, Any]:
    """What lmms-eval's `simple_evaluate` returned of a run, as far as it is kept."""
    tasks = list(result.metrics["scores"])
    configs = {
        task: {
            "task": task,
            "group": None,
            "output_type": "generate_until",
            "metric_list": [{"metric": name} for name in result.per_question[task] if name != "doc_id"],
        }
        for task in tasks
    }
    found = {"results": result.metrics["scores"], "configs": configs, "config": result.about["config"]}
    return found | {"versions": dict.fromkeys(tasks, "N/A"), "n-shot": dict.fromkeys(tasks, 0)}


def samples(result: Result, configs: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Task -> one record per question with its answer and scores; prompts and targets are not kept: they are empty."""
    file = result.folder / RESPONSES
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    said = {(line["task"], line["doc_id"]): line["response"] for line in lines}
    found = {}
    for task, each in result.per_question.items():
        names = [metric["metric"] for metric in configs[task]["metric_list"]]
        rows = []
        for place, doc_id in enumerate(each["doc_id"]):
            answer = said.get((task, doc_id), "")
            row = {"doc_id": doc_id, "target": "", "arguments": [[""]], "resps": [[answer]], "filtered_resps": [answer]}
            rows.append(row | {name: each[name][place] for name in names})
        found[task] = rows
    return found
