"""Runs for other programs and for committing: python -m harness.export runs=results/runs out=export.

`wandb=PROJECT` logs the runs to Weights & Biases. `archive=FOLDER` writes their scores and provenance into two files,
which the commands that read runs read like a folder of runs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from harness.core.command import command
from harness.core.errors import UserError, as_user_error, one_line
from harness.core.files import check_place, read_jsonl, slug, write_atomic
from harness.results import archive
from harness.results.frames import questions
from harness.results.labels import labels
from harness.results.method_groups import group_of
from harness.results.result import Result, folders_of, load_results
from harness.results.run_folder import AGAIN, DONE, KEPT, RESPONSES

QUESTIONS, LEADERBOARD, CARD = Path("data", "questions.parquet"), "leaderboard.csv", "README.md"
PACKAGES = ("lmms-eval", "transformers", "torch")
OF_ANSWER = ("response", "failed", "input_tokens", "output_tokens")
OF_TOKENS = {"n": "visual_tokens", "k": "kept_tokens", "per_layer": "tokens_per_layer"}


def per_question(results: Sequence[Result]) -> pd.DataFrame:
    """One row per run and question: what was run, the score, the answer, the tokens before and after.

    `score` is what the question adds to the task's metric (NaN where the task keeps no number), `record` what lmms-eval
    keeps of it otherwise, as JSON; `failed` is why a question could not be asked.
    Answers and tokens are missing of runs that are kept without them.
    """
    names = labels(results)
    return pd.concat([_of(result, names[result.hash]) for result in results], ignore_index=True)


def _of(result: Result, label: str) -> pd.DataFrame:
    identity, config = result.about["identity"], result.about["config"]
    run = {
        "model": config["model"]["name"],
        "tasks": config["tasks"]["name"],
        "method": result.method,
        "label": label,
        "group": group_of(result.method),
        "budget": result.budget,
        "lambda": config["method"].get("lam"),
        "seed": identity["seed"],
        "hash": result.hash,
        "setting": result.setting[:8],
    }
    scores = questions([result])[result.hash]
    answers, tokens = _lines(result, RESPONSES), _lines(result, KEPT)
    rows = []
    for (task, doc_id), score in zip(scores.index, scores, strict=True):
        metric = result.metrics["primary"][task]
        row = {**run, "task": task, "doc_id": int(doc_id), "metric": metric, "score": score}
        row["record"] = _record(result.per_question[task], metric, doc_id)
        answer, counted = answers.get((task, doc_id), {}), tokens.get((task, doc_id), {})
        row |= {name: answer.get(name) for name in OF_ANSWER}
        rows.append(row | {name: counted.get(key) for key, name in OF_TOKENS.items()})
    counts = dict.fromkeys([*OF_ANSWER[2:], "visual_tokens", "kept_tokens"], "Int64")
    floats = {"lambda": "Float64", "tokens_per_layer": "Float64"}
    return pd.DataFrame(rows).astype({"response": "string", "failed": "string", "record": "string", **counts, **floats})


def _lines(result: Result, name: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines of a run's file by question; none if the run is kept without it."""
    file = result.folder / name
    lines = read_jsonl(file, AGAIN) if file.is_file() else ()
    return {(line["task"], line["doc_id"]): line for line in lines}


def _record(each: dict[str, list[Any]], metric: str | None, doc_id: int) -> str | None:
    found = each.get(metric or "", [])
    value = found[each["doc_id"].index(doc_id)] if found else None
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else None


def leaderboard(results: Sequence[Result], resamples: int, seed: int) -> pd.DataFrame:
    """One row per run: rank by average within model, tasks and budget, the table's columns, what it was run with."""
    from harness.results.formats import sheet
    from harness.tables import of_runs

    frame = sheet(of_runs(results, resamples, seed)[0])
    known = {result.hash: result for result in results}
    runs = [known[name] for name in frame["hash"]]
    average = pd.to_numeric(frame["avg"])
    place = [frame[name] for name in ("model", "tasks", "setting", "budget")]
    frame.insert(0, "rank", average.groupby(place).rank(ascending=False, method="min").astype("Int64"))
    for package in PACKAGES:
        frame[package] = [run.packages.get(package) for run in runs]
    frame["dtype"] = [run.about["identity"]["model"]["dtype"] for run in runs]
    frame["limit"] = [run.about["identity"]["tasks"]["limit"] for run in runs]
    frame["seed"] = [run.about["identity"]["seed"] for run in runs]
    frame["verified"] = [not run.unverified for run in runs]
    frame["commit"] = [run.about["git"] for run in runs]
    order = frame.assign(average=average, place=range(len(frame)))
    first = order.groupby(place, sort=False)["place"].transform("min")
    order = order.assign(first=first).sort_values(["first", "average"], ascending=[True, False], kind="stable")
    return frame.loc[order.index]


CARD_TEXT = """---
configs:
- config_name: questions
  data_files: {questions}
---

# Visual-token pruning, question by question

`{questions}`: a row per question and run; `hash` names the run. `{leaderboard}`: a row per run. Written by
`python -m harness.export` from {runs} runs: {models}.
"""


def write(results: Sequence[Result], out: Path, resamples: int, seed: int) -> list[Path]:
    """Write data/questions.parquet, leaderboard.csv and a card below `out`; each is whole or absent."""
    each, board = per_question(results), leaderboard(results, resamples, seed)
    models = ", ".join(dict.fromkeys(each["model"]))
    files = [out / QUESTIONS, out / LEADERBOARD, out / CARD]
    with as_user_error(OSError, f"cannot write below out={out}"):
        files[0].parent.mkdir(parents=True, exist_ok=True)
        write_atomic(files[0], each.to_parquet(None, index=False))
        write_atomic(files[1], board.to_csv(index=False))
        about = {"questions": QUESTIONS.as_posix(), "leaderboard": LEADERBOARD, "runs": len(results), "models": models}
        write_atomic(files[2], CARD_TEXT.format(**about))
    return files


def refuse_unfinished(folders: Sequence[Path]) -> None:
    """UserError if a run below one of the folders has not finished."""
    for folder in folders:
        for file in sorted(folder.rglob("run.json")):
            if not (file.parent / DONE).is_file():
                raise UserError(f"{file.parent} is no finished run: finish it or move it away, then archive again")


def update_archive(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write runs into an archive, new or there already; returns its files.

    A run replaces the archived runs of its cell. A replaced unpruned run stays while a pruned one is relative to it.
    UserError if two of the runs are of one cell, or if one is damaged.
    """
    new: dict[str, Result] = {}
    for result in results:
        _check_complete(result)
        if (other := new.setdefault(result.cell, result)) is not result:
            raise UserError(f"{other.folder} and {result.folder} have the same settings: move one of them away")
    archived = archive.read(folder) if archive.is_archive(folder) else []
    old = [Result.archived(folder / run.name, run) for run in archived]
    needed = {result.setting for result in old if result.cell not in new}
    again = {result.hash for result in results}
    kept = [
        result
        for result in old
        if result.cell not in new or (result.is_baseline and result.setting in needed and result.hash not in again)
    ]
    archive.write(folder, [_archived(result) for result in [*kept, *results]])
    print(f"{folder}: {len(results)} runs written, {len(kept)} kept, {len(old) - len(kept)} replaced")
    return [folder / archive.PROVENANCE, folder / archive.SCORES]


def _check_complete(result: Result) -> None:
    """UserError unless every question of every task has a score in every column."""
    counts = {task: {*map(len, each.values())} for task, each in result.per_question.items()}
    if counts != {task: {count} for task, count in result.metrics["questions"].items()}:
        again = "run it again with force=true"
        raise UserError(f"{result.folder} is damaged (scores.json has other questions than metrics.json): {again}")


def _archived(result: Result) -> archive.ArchivedRun:
    config = result.about["config"]
    name = Path(slug(config["model"]["name"]), slug(config["tasks"]["name"]), result.folder.name)
    return archive.ArchivedRun(str(name), result.about, result.metrics, result.finished, result.per_question)


def check(cfg: DictConfig) -> None:
    """Something is asked for, and possible."""
    if cfg.out is None and cfg.wandb is None and cfg.archive is None:
        others = "archive=FOLDER, or a Weights & Biases project as wandb=PROJECT"
        raise UserError(f"out is null: pass a folder, as in out=export, or {others}")
    for key in ("out", "archive"):
        if cfg[key] is not None:
            check_place(Path(str(cfg[key])), key)


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
        with as_user_error(wandb.Error, f"wandb={project}", "WANDB_MODE=offline logs without a server"):
            about = {"name": name, "group": "/".join(place), "tags": place, "config": result.about}
            logger = WandbLogger(project=project, reinit="finish_previous", **about)
            found = as_lmms_eval(result)
            logger.post_init(found)
            logger.log_eval_result()
            logger.log_eval_samples(samples(result, found["configs"]))
            wandb.finish()
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
    said = {question: line["response"] for question, line in _lines(result, RESPONSES).items()}
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


def main(cfg: DictConfig) -> None:
    """Write and log what is asked for, then one JSON line."""
    results = load_results(cfg.runs)
    if cfg.archive is not None:
        refuse_unfinished(folders_of(cfg.runs))
    files = write(results, Path(str(cfg.out)), int(cfg.resamples), int(cfg.seed)) if cfg.out is not None else []
    if cfg.archive is not None:
        files += update_archive(results, Path(str(cfg.archive)))
    logged = log_to_wandb(results, str(cfg.wandb)) if cfg.wandb is not None else []
    for name in [*map(str, files), *logged]:
        print(name)
    print(json.dumps({"runs": len(results), "files": [str(file) for file in files], "logged": logged}), flush=True)


if __name__ == "__main__":
    command("export", main, (check,))
