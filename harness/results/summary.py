"""One long frame about runs: scores, standard errors, intervals, changed answers, and tests against the best."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.core.errors import UserError
from harness.core.files import json_line
from harness.results.frames import answers, budget_key, questions, select_task
from harness.results.influence import pictures
from harness.results.labels import Remark, names, ranked_apart, setting_notes
from harness.results.method_groups import group_of
from harness.results.result import Result, average, failures, relative, unproven
from harness.results.stats import ALPHA, AVERAGE, Noise, agreement, flips, noise

COLUMNS = [
    *("hash", "setting", "budget", "benchmark", "score", "se", "score_low", "score_high"),
    *("relative", "relative_se", "low", "high", "lost", "gained", "agreement"),
    *("tested", "pictures", "seeds", "seed_sd", "best", "p_best", "as_best"),
]


def summary(results: Sequence[Result]) -> tuple[pd.DataFrame, list[str]]:
    """Return a row per run and benchmark, and per run and `AVERAGE`, with COLUMNS; and notes on the statistics.

    `se` is the standard error of the score, whose interval is `score_low` to `score_high`; `relative_se` is that of
    `relative`, whose interval is `low` to `high`. `lost` and `gained` count the questions that score less and more than
    unpruned. `agreement` is the percentage of answers that equal the unpruned model's. `tested` says whether the error
    is known; without it there is no mark. `pictures` counts the different pictures of a benchmark, and `seeds`
    those whose mean a row shows; `seed_sd` is the standard deviation of their `relative`. `best` marks the
    best of a block (a setting and budget; rows with a star apart, see `ranked_apart`), `p_best` is the p-value of no
    other being better, and `as_best` is true for the others unless it is below ALPHA. NaN means unknown.
    """
    frames: list[pd.DataFrame] = []
    notes: list[str] = []
    for setting in dict.fromkeys(result.setting for result in results):
        same_setting = [result for result in results if result.setting == setting]
        frame, more_notes = _of_setting(same_setting)
        frames.append(frame)
        notes += more_notes
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    return frame.astype({"best": bool, "as_best": bool, "tested": bool}), list(dict.fromkeys(notes))


def _of_setting(results: Sequence[Result]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of runs that share a baseline, and notes."""
    baseline = next((result for result in results if result.is_baseline), None)
    cells = {key: cell for result in results for key, cell in _scores(result, baseline).items()}
    notes = []
    if baseline is None:
        place, name = results[0].folder.parent, results[0].folder.name
        notes.append(f"{place}: no finished run of the unpruned model with the settings of {name}")
    scored = [result for result in results if result.has_questions]
    unscored = [str(result.folder) for result in results if not result.has_questions]
    if unscored:
        more = f" and {len(unscored) - 1} more" * (len(unscored) > 1)
        notes.append(f"no statistics of {unscored[0]}{more}: no scores.json there; run again with force=true")
    if baseline is not None:
        others = [result for result in scored if result.metrics["primary"] != baseline.metrics["primary"]]
        scored = [result for result in scored if result not in others]
        notes += [f"no statistics of {result.folder}: it shows other metrics than the unpruned" for result in others]
    notes += _seeds(results, {result.hash: cells[result.hash, AVERAGE]["seed_sd"] for result in results})
    if baseline is not None and baseline.has_questions and len(scored) > 1:
        errors = noise(scored, baseline)
        notes += _add_statistics(cells, scored, baseline, errors)
    return pd.DataFrame([{column: cell.get(column, math.nan) for column in COLUMNS} for cell in cells.values()]), notes


def _seeds(results: Sequence[Result], spreads: dict[str, float]) -> list[str]:
    """Return a note for each method whose rows are means over seeds."""
    rows: dict[str, list[str]] = {}
    for result in (result for result in results if result.seeds):
        spread = "" if math.isnan(spreads[result.hash]) else f", standard deviation {spreads[result.hash]:.2f}"
        rows.setdefault(result.label, []).append(f"{result.budget}: {len(result.seeds)} seeds{spread}")
    return [Remark(f"averages of {label} are means over seeds ({'; '.join(of)})") for label, of in rows.items()]


def _scores(result: Result, baseline: Result | None) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the columns that need no scores per question, by run and benchmark."""
    percent = relative(result, baseline) if baseline else dict.fromkeys(result.metrics["primary"])
    shared: dict[str, Any] = {"hash": result.hash, "setting": result.setting[:8], "budget": result.budget}
    shared |= {"best": False, "as_best": False, "tested": False}
    rows: dict[str, dict[str, Any]]
    rows = {task: {"score": result.score(task), "relative": share} for task, share in percent.items()}
    rows[AVERAGE] = {"relative": average(percent)}
    of_seeds = [relative(run, baseline) for run in result.seeds] if baseline else []
    for name, row in rows.items():
        shares = [average(shares) if name == AVERAGE else shares[name] for shares in of_seeds]
        known = [share for share in shares if share is not None]
        spread = float(np.std(known, ddof=1)) if len(known) == len(shares) > 1 else math.nan
        row |= {"seeds": len(result.seeds) or 1, "seed_sd": spread}
    return {(result.hash, name): {**shared, "benchmark": name, **row} for name, row in rows.items()}


def _add_statistics(
    cells: dict[tuple[str, str], dict[str, Any]], results: Sequence[Result], baseline: Result, errors: Noise
) -> list[str]:
    """Add the columns that are computed from scores and answers per question; return notes."""
    _add_errors(cells, results, baseline, errors)
    _add_answers(cells, results, baseline)
    luck = []
    blocks: dict[tuple[str, float], list[str]] = {}
    for result in (result for result in results if result.budget):
        blocks.setdefault((result.budget, _apart(result)), []).append(result.hash)
    for (budget, apart), block in blocks.items():
        for benchmark, estimate in errors.shares.items():
            of_block = estimate.of([errors.place(run) for run in block])
            best, p = of_block.values.max(), of_block.against_best()
            for run, value, p_best in zip(block, of_block.values, p, strict=True):
                equal = math.isclose(value, best, rel_tol=1e-9)
                cells[run, benchmark] |= {"best": equal, "p_best": p_best, "as_best": not equal and p_best >= ALPHA}
            if benchmark == AVERAGE and len(block) > 1:
                luck.append(f"{of_block.luck():.2f} points ({budget}, {len(block)} rows{' with *' * bool(apart)})")
    notes: list[str] = [Remark(f"untested: {task}, since {reason}") for task, reason in errors.untested.items()]
    counts = {task: (baseline.metrics["questions"][task], pictures(baseline, task)) for task in errors.tasks}
    shared = [f"{task}: {n:,} on {shown:,} pictures" for task, (n, shown) in counts.items() if shown and shown < n]
    if shared:
        treated = "errors treat pictures, not questions, as independent"
        notes.append(Remark(f"several questions are about one picture ({', '.join(shared)}); {treated}"))
    if luck:
        chosen = "the best average was selected on these questions and is expected to be too high, by"
        notes.append(Remark(f"{chosen} {', '.join(luck)}"))
    return notes


def _add_errors(
    cells: dict[tuple[str, str], dict[str, Any]], results: Sequence[Result], baseline: Result, errors: Noise
) -> None:
    counts = {task: pictures(baseline, task) for task in errors.tasks}
    for run in (result.hash for result in results):
        place = errors.place(run)
        for task, estimate in errors.scores.items():
            low, high = errors.score_interval(task, run)
            cells[run, task] |= {"se": float(estimate.errors[place]), "score_low": low, "score_high": high}
        for benchmark, estimate in errors.shares.items():
            low, high = estimate.interval(place)
            cells[run, benchmark] |= {"relative_se": float(estimate.errors[place]), "low": low, "high": high}
            cells[run, benchmark]["tested"] = True
        for task, count in counts.items():
            cells[run, task]["pictures"] = count


def _add_answers(cells: dict[tuple[str, str], dict[str, Any]], results: Sequence[Result], baseline: Result) -> None:
    """Add how many questions changed, on average over the seeds of a run."""
    runs = {result.hash: [run.hash for run in result.seeds or (result,)] for result in results}
    single = [run for result in results for run in result.seeds or (result,)]
    scores, texts = questions(single), _answers(single)
    for benchmark in [*baseline.metrics["primary"], AVERAGE]:
        is_average = benchmark == AVERAGE
        task_scores = scores if is_average else select_task(scores, benchmark)
        task_texts = texts if texts is None or is_average else select_task(texts, benchmark)
        for name, seeds in runs.items():
            cell = cells[name, benchmark]
            if not task_scores[[*seeds, baseline.hash]].isna().to_numpy().any():
                changed = [flips(task_scores[seed], task_scores[baseline.hash]) for seed in seeds]
                cell["lost"], cell["gained"] = (sum(counts) / len(seeds) for counts in zip(*changed, strict=True))
            if task_texts is not None:
                same = [agreement(task_texts[seed], task_texts[baseline.hash]) for seed in seeds]
                cell["agreement"] = sum(same) / len(same)


def _apart(result: Result) -> float:
    return ranked_apart(result.tokens("budget"), result.tokens("per_layer"))


def _answers(results: Sequence[Result]) -> pd.DataFrame | None:
    """Return the answers; None if a run has none on disk."""
    try:
        return answers(results)
    except UserError:
        return None


FACTS = ["hash", "model", "tasks", "method", "name", "group", "lambda", "params", "K", "per_layer", "questions"]


def full_summary(results: Sequence[Result]) -> tuple[pd.DataFrame, list[str]]:
    """Return the frame of `summary` joined with FACTS about each run, and all notes.

    `name` is unique within a setting and budget. `params` holds a method's parameters except lambda, as JSON.
    """
    frames, notes = [], []
    for model, tasks in dict.fromkeys(map(_place, results)):
        runs = [result for result in results if _place(result) == (model, tasks)]
        of_runs, notes_of_runs = summary(runs)
        frames.append(of_runs)
        notes_of_runs += [*setting_notes(runs), *failures(runs), *unproven(runs)]
        notes += [type(note)(f"{model} on {tasks}: {note}") for note in notes_of_runs]
    frame = pd.concat(frames, ignore_index=True)
    unique_names = names(results)
    facts = pd.DataFrame([_facts(result, unique_names[result.hash]) for result in results], columns=FACTS)
    return frame.merge(facts, on="hash", how="left", validate="many_to_one"), notes


def _place(result: Result) -> tuple[str, str]:
    config = result.about["config"]
    return config["model"]["name"], config["tasks"]["name"]


def _facts(result: Result, name: str) -> dict[str, Any]:
    config = result.about["config"]
    params = {key: value for key, value in config["method"].items() if key not in ("name", "lam")}
    return {
        "hash": result.hash,
        "model": config["model"]["name"],
        "tasks": config["tasks"]["name"],
        "method": result.method,
        "name": name,
        "group": group_of(result.method),
        "lambda": config["method"].get("lam"),
        "params": json_line(params, ensure_ascii=True, sort_keys=True),
        "K": result.tokens("budget"),
        "per_layer": result.tokens("per_layer"),
        "questions": sum(result.metrics["questions"].values()),
    }


def of_scores(raw: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of `full_summary` for raw scores (`frames.read_scores`), without intervals and tests."""
    rows = raw.assign(setting=raw["model"] + " " + raw["tasks"], params="{}")
    rows["hash"] = rows["setting"] + " " + rows["budget"] + " " + rows["method"] + " " + rows["lambda"].map(str)
    several = rows.groupby(["setting", "budget", "method"])["lambda"].transform("nunique") > 1
    rows["name"] = rows["method"] + (" (lam " + rows["lambda"].map(str) + ")").where(several, "")
    rows["K"] = [count if kind == "tokens" else math.nan for kind, count in map(budget_key, rows["budget"])]
    averages = rows.drop_duplicates("hash").assign(benchmark=AVERAGE, score=math.nan)
    counts = rows["setting"].map(rows.groupby("setting")["benchmark"].nunique())
    complete = rows.groupby("hash")["relative"].transform("count") == counts  # other rows have no average
    means = rows[complete].groupby("hash")["relative"].mean()
    averages["relative"] = averages["hash"].map(means)
    return pd.concat([rows, averages], ignore_index=True).reindex(columns=[*COLUMNS, *FACTS[1:]])
