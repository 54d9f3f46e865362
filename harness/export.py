"""Export runs for other programs: python -m harness.export runs=results/runs out=export.

`wandb=PROJECT` logs the runs to Weights & Biases. `archive=FOLDER` writes their scores and provenance into two files,
to commit them; commands that read runs accept such an archive in place of a folder of runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from harness.core.command import command
from harness.core.console import print_json, say
from harness.core.errors import UserError, as_user_error, one_line
from harness.core.escape import csv, markdown
from harness.core.files import check_place, json_line, make_folder, slug, write_atomic
from harness.core.question_sample import in_words
from harness.results import archive
from harness.results.frames import questions
from harness.results.labels import labels
from harness.results.method_groups import group_of
from harness.results.metrics import OF_QUESTION
from harness.results.response_log import read_kept, read_responses
from harness.results.result import Result, folders_of, load_results
from harness.results.run_folder import AGAIN, DONE

QUESTIONS, LEADERBOARD, CARD = Path("data", "questions.parquet"), "leaderboard.csv", "README.md"
PACKAGES = ("lmms-eval", "transformers", "torch")
RESPONSE_COLUMNS = ("response", "failed", "input_tokens", "output_tokens")
TOKEN_COLUMNS = {"n": "visual_tokens", "k": "kept_tokens", "per_layer": "tokens_per_layer"}  # key in kept.jsonl

VIDEO_COLUMNS = ("video_frames", "video_tokens", "seconds_per_step")  # sums, and a mean; empty without a video


def per_question(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row per run and question: the settings, the score, the answer, the tokens before and after.

    `score` is the question's contribution to the task's metric, NaN where the task keeps no number. `record` is what
    lmms-eval keeps instead, as JSON. `failed` is the reason why a question could not be asked. Answers and tokens are
    empty for runs without these files.
    """
    names = labels(results)
    return pd.concat([_questions_of(result, names[result.hash]) for result in results], ignore_index=True)


def _questions_of(result: Result, label: str) -> pd.DataFrame:
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
    responses, kept = _by_question(read_responses(result.folder, AGAIN)), _by_question(read_kept(result.folder, AGAIN))
    rows = []
    for (task, doc_id), score in zip(scores.index, scores, strict=True):
        metric = result.metrics["primary"][task]
        row = {**run, "task": task, "doc_id": int(doc_id), "metric": metric, "score": score}
        row["record"] = _record(result.per_question[task], metric, doc_id)
        response, tokens = responses.get((task, doc_id), {}), kept.get((task, doc_id), {})
        row |= {name: response.get(name) for name in RESPONSE_COLUMNS}
        row |= {name: tokens.get(key) for key, name in TOKEN_COLUMNS.items()}
        rows.append(row | _of_videos(tokens.get("videos", [])))
    counts = dict.fromkeys([*RESPONSE_COLUMNS[2:], "visual_tokens", "kept_tokens", *VIDEO_COLUMNS[:2]], "Int64")
    floats = dict.fromkeys(["lambda", "tokens_per_layer", VIDEO_COLUMNS[2]], "Float64")
    return pd.DataFrame(rows).astype({"response": "string", "failed": "string", "record": "string", **counts, **floats})


def _of_videos(videos: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    if not videos:
        return dict.fromkeys(VIDEO_COLUMNS)
    frames, tokens = (sum(video[key] for video in videos) for key in ("frames", "tokens"))
    seconds = sum(video["seconds_per_step"] for video in videos) / len(videos)
    return dict(zip(VIDEO_COLUMNS, (frames, tokens, seconds), strict=True))


def _by_question(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the lines of a run's file by question, the first of its repeats."""
    return {(line["task"], line["doc_id"]): line for line in lines if not line.get("repeat")}


def _record(columns: dict[str, list[Any]], metric: str | None, doc_id: int) -> str | None:
    values = columns.get(metric or "", [])
    value = values[columns["doc_id"].index(doc_id)] if values else None
    return json_line(value) if isinstance(value, dict | list) else None


def leaderboard(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row per run: the rank within model, tasks and budget, the columns of the table, and versions."""
    from harness.results.formats import sheet
    from harness.tables import of_runs

    frame = sheet(of_runs(results)[0])
    by_hash = {result.hash: result for result in results}
    runs = [by_hash[name] for name in frame["hash"]]
    average = pd.to_numeric(frame["avg"])
    block = [frame[name] for name in ("model", "tasks", "setting", "budget")]
    frame.insert(0, "rank", average.groupby(block).rank(ascending=False, method="min").astype("Int64"))
    for package in PACKAGES:
        frame[package] = [run.packages.get(package) for run in runs]
    frame["dtype"] = [run.about["identity"]["model"]["dtype"] for run in runs]
    frame["limit"] = [run.sample["limit"] for run in runs]
    frame["asked"] = [in_words(run.sample) for run in runs]
    frame["seed"] = [run.about["identity"]["seed"] for run in runs]
    frame["verified"] = [not run.unverified for run in runs]
    frame["commit"] = [run.about["git"] for run in runs]
    order = frame.assign(average=average, place=range(len(frame)))
    first = order.groupby(block, sort=False)["place"].transform("min")
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


def write(results: Sequence[Result], out: Path) -> list[Path]:
    """Write data/questions.parquet, leaderboard.csv and README.md below `out`; each file is complete or absent."""
    rows, board = per_question(results), leaderboard(results)
    models = markdown(", ".join(dict.fromkeys(rows["model"])))
    files = [out / QUESTIONS, out / LEADERBOARD, out / CARD]
    make_folder(files[0].parent)
    write_atomic(files[0], rows.to_parquet(None, index=False))
    write_atomic(files[1], csv(board))
    fields = {"questions": QUESTIONS.as_posix(), "leaderboard": LEADERBOARD, "runs": len(results), "models": models}
    write_atomic(files[2], CARD_TEXT.format(**fields))
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
    say(f"{folder}: {len(results)} runs written, {len(kept)} kept, {len(old) - len(kept)} replaced")
    return [folder / archive.PROVENANCE, folder / archive.SCORES]


def _archived(result: Result) -> archive.ArchivedRun:
    config = result.about["config"]
    name = Path(slug(config["model"]["name"]), slug(config["tasks"]["name"]), result.folder.name)
    return archive.ArchivedRun(str(name), result.about, result.metrics, result.finished, result.per_question)


def check(cfg: DictConfig) -> None:
    """Raise UserError unless the options name something to write, and it can be written."""
    if cfg.out is None and cfg.wandb is None and cfg.archive is None:
        others = "archive=FOLDER, or a Weights & Biases project as wandb=PROJECT"
        raise UserError(f"out is null: pass a folder, as in out=export, or {others}")
    for key in ("out", "archive"):
        if cfg[key] is not None:
            check_place(cfg[key], key)


def log_to_wandb(results: Sequence[Result], project: str) -> list[str]:
    """Log every run with its configuration, scores and answers, and return the names of the W&B runs.

    W&B's environment variables apply: WANDB_MODE=offline keeps the runs here, WANDB_ENTITY names the team.
    """
    try:
        import wandb
        from lmms_eval.loggers import WandbLogger
    except ImportError as error:
        raise UserError(f"wandb={project} needs wandb: pip install wandb ({one_line(error)})") from error
    names = labels(results)
    logged = []
    for result in results:
        tags = [str(result.about["model"]), str(result.about["config"]["tasks"]["name"])]
        name = " ".join(filter(None, [names[result.hash], result.budget]))
        with as_user_error(wandb.Error, f"wandb={project}", "WANDB_MODE=offline logs without a server"):
            options = {"name": name, "group": "/".join(tags), "tags": tags, "config": result.about}
            logger = WandbLogger(project=project, reinit="finish_previous", **options)
            content = as_lmms_eval(result)
            logger.post_init(content)
            logger.log_eval_result()
            logger.log_eval_samples(samples(result, content["configs"]))
            wandb.finish()
        logged.append(name)
    return logged


def as_lmms_eval(result: Result) -> dict[str, Any]:
    """Return a run in the form of lmms-eval's `simple_evaluate`, as far as it is on disk."""
    tasks = list(result.metrics["scores"])
    configs = {
        task: {
            "task": task,
            "group": None,
            "output_type": "generate_until",
            "metric_list": [{"metric": name} for name in result.per_question[task] if name not in OF_QUESTION],
        }
        for task in tasks
    }
    content = {"results": result.metrics["scores"], "configs": configs, "config": result.about["config"]}
    return content | {"versions": dict.fromkeys(tasks, "N/A"), "n-shot": dict.fromkeys(tasks, 0)}


def samples(result: Result, configs: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return task -> one record per question, with answer and scores; prompts and targets are empty."""
    lines = _by_question(read_responses(result.folder, AGAIN))
    answers = {question: line["response"] for question, line in lines.items()}
    rows_by_task = {}
    for task, columns in result.per_question.items():
        names = [metric["metric"] for metric in configs[task]["metric_list"]]
        rows = []
        for place, doc_id in enumerate(columns["doc_id"]):
            answer = answers.get((task, doc_id), "")
            row = {"doc_id": doc_id, "target": "", "arguments": [[""]], "resps": [[answer]], "filtered_resps": [answer]}
            rows.append(row | {name: columns[name][place] for name in names})
        rows_by_task[task] = rows
    return rows_by_task


def main(cfg: DictConfig) -> None:
    """Write the files, log the runs, and end with one JSON line."""
    results = load_results(cfg.runs)
    if cfg.archive is not None:
        refuse_unfinished(folders_of(cfg.runs))
    files = write(results, Path(str(cfg.out))) if cfg.out is not None else []
    if cfg.archive is not None:
        files += update_archive(results, Path(str(cfg.archive)))
    logged = log_to_wandb(results, str(cfg.wandb)) if cfg.wandb is not None else []
    for name in [*map(str, files), *logged]:
        say(name)
    print_json({"runs": len(results), "files": [str(file) for file in files], "logged": logged})


if __name__ == "__main__":
    command("export", main, (check,))
