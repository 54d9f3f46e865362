"""The questions that a page shows, with every run's answer and kept tokens, as JSON that outlives the run folders.

A sample is {"settings": [...], "overlaps": [...]}. A setting is a model on a set of tasks with all its runs:
{"model", "tasks", "setting", "runs": [hash, ...], "answered": questions there are, "candidates": questions that
could be chosen (all of them where this is missing), "agreement": [{benchmark: percent of the unpruned model's answers}
for each run], "questions": [...]}; a question is
{"task", "doc_id", "n", "grids", "answers": [[text, score, k, kept, shown] or null for each run]}, where kept is n bits
in base 64 or null. Where runs recorded it, a question has "orders" (16 bits for each kept token, or null for each run)
and "importance" (8 bits for each of the n tokens), both in base 64. Where a run cut several times, it has "stages"
([layer, tokens left, n bits in base 64] for each cut, or null, for each run). A question about videos may have
"seconds" of a temporal step of each of them. One that asks where has "where", the box of what it asks about, and
"boxes", that of each run's answer or null: left, top, right, bottom in shares of what the model is shown. An overlap is
a budget of a setting: {"setting", "budget", "runs", "mean", "blind", "questions"}.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.core.errors import UserError, one_line
from harness.core.files import BAD_JSON, from_json, json_line, make_folder, write_atomic
from harness.report import answers
from harness.report.answers import RIGHT, Question, Recorded
from harness.results.result import Result

Sample = dict[str, Any]
Answers = Mapping[str, Recorded]  # of each run, by its hash
Scores = Mapping[str, Mapping[Question, float]]
OF_RUNS = ("answers", "orders", "stages", "boxes")  # keys of a question with an entry for each run
EMPTY: Sample = {"settings": [], "overlaps": []}


def gather(results: Sequence[Result], per_task: int | None) -> Sample:
    """Choose the `per_task` most informative questions of every task (None: all), and measure how kept tokens overlap.

    Settings without a pruned run are left out.
    """
    sample: Sample = {"settings": [], "overlaps": []}
    for setting in dict.fromkeys(result.setting for result in results):
        group = [result for result in results if result.setting == setting]
        by_run: dict[str, Recorded] = {}
        for result in group:
            if found := answers.read(result, next(iter(by_run.values()), None)):
                by_run[result.hash] = found
        group = [result for result in group if result.hash in by_run]
        if any(not result.is_baseline for result in group):
            sample["settings"].append(_setting(group, by_run, per_task))
            sample["overlaps"] += _overlaps(group, by_run)
    return sample


def _setting(group: Sequence[Result], by_run: Answers, per_task: int | None) -> Sample:
    scores = {result.hash: answers.scores(result) for result in group}
    about = group[0].about["config"]
    asked = list(dict.fromkeys(question for result in group for question in sorted(by_run[result.hash])))
    questions, candidates = [], 0
    for task in about["tasks"]["metrics"]:
        of_task = _candidates(sorted(question for question in asked if question[0] == task), by_run, per_task)
        candidates += len(of_task)
        for index in _chosen(of_task, group, by_run, scores, per_task):
            questions.append(_question(of_task[index], group, by_run, scores))
    return {
        "model": about["model"]["name"],
        "tasks": about["tasks"]["name"],
        "setting": group[0].setting,
        "runs": [result.hash for result in group],
        "answered": len(asked),
        "candidates": candidates,
        "agreement": [{} for _ in group],
        "questions": questions,
    }


def _candidates(questions: list[Question], by_run: Answers, per_task: int | None) -> list[Question]:
    """Questions of which a run recorded more than the kept tokens; all questions if these are fewer than `per_task`."""
    in_detail = set().union(*(run.in_detail() for run in by_run.values()))
    recorded = [question for question in questions if question in in_detail]
    return questions if per_task is None or len(recorded) < per_task else recorded


def _chosen(
    questions: Sequence[Question], group: Sequence[Result], by_run: Answers, scores: Scores, per_task: int | None
) -> list[int]:
    if per_task is None or per_task >= len(questions):
        return list(range(len(questions)))
    values = np.array([[scores[result.hash].get(question, np.nan) for question in questions] for result in group])
    if np.isfinite(values).any():
        return informative(np.where(np.isnan(values), np.nan, values >= RIGHT), per_task)
    texts = [[by_run[result.hash][q].text for result in group if q in by_run[result.hash]] for q in questions]
    return varied(texts, per_task)


def _question(question: Question, group: Sequence[Result], by_run: Answers, scores: Scores) -> dict[str, Any]:
    run_answers = [by_run[result.hash].get(question) for result in group]
    first = next(answer for answer in run_answers if answer is not None)
    values = [scores[result.hash].get(question, np.nan) for result in group]
    rows = [
        None if a is None else [a.text.strip(), None if np.isnan(s) else s, a.k, answers.text(a.mask), a.shown]
        for s, a in zip(values, run_answers, strict=True)
    ]
    orders = [answer and answer.order for answer in run_answers]
    stages = [answer and answer.stages for answer in run_answers]
    boxes = [answer and answer.box for answer in run_answers]
    importance = [answer.importance for answer in run_answers if answer and answer.importance]
    return {
        **{"task": question[0], "doc_id": question[1], "n": first.n, "grids": first.grids, "answers": rows},
        **({"orders": orders} if any(orders) else {}),
        **({"stages": stages} if any(stages) else {}),
        **({"importance": importance[-1]} if importance else {}),
        **({"seconds": first.seconds} if first.seconds else {}),
        **({"where": first.target} if first.target else {}),
        **({"boxes": boxes} if any(boxes) else {}),
    }


def _overlaps(group: Sequence[Result], by_run: Answers) -> list[dict[str, Any]]:
    tables = []
    for budget in dict.fromkeys(result.about["budget"] for result in group if not result.is_baseline):
        runs = [result for result in group if result.about["budget"] == budget and not result.is_baseline]
        runs = [run for run in runs if by_run[run.hash].partly_kept()]
        if len(runs) < 2:
            continue
        mean, blind, questions = overlap([by_run[result.hash] for result in runs])
        if questions:
            rows = [[round(float(cell), 4) for cell in row] for row in mean]
            about = {"setting": runs[0].setting, "budget": budget, "runs": [result.hash for result in runs]}
            tables.append({**about, "mean": rows, "blind": round(blind or 0.0, 4), "questions": questions})
    return tables


def save(sample: Sample, file: Path) -> None:
    """Write a sample with one question a line, so that a changed question is one changed line."""
    lines = []
    for setting in sample["settings"]:
        head = {key: value for key, value in setting.items() if key != "questions"}
        body = ",\n".join(json_line(question) for question in setting["questions"])
        lines.append(f'{json_line(head)[:-1]}, "questions": [\n{body}\n]}}')
    overlaps = ",\n".join(json_line(table) for table in sample["overlaps"])
    make_folder(file.parent)
    write_atomic(file, '{"settings": [\n' + ",\n".join(lines) + '\n], "overlaps": [\n' + overlaps + "\n]}\n")


def load(file: Path, results: Sequence[Result]) -> Sample:
    """Read a sample that `save` wrote, without the runs that are not among `results`."""
    try:
        sample: Sample = from_json(file.read_bytes())
        return {
            "settings": [s for setting in sample["settings"] if (s := _of(setting, {r.hash for r in results}))["runs"]],
            "overlaps": [table for table in sample["overlaps"] if {r.hash for r in results} >= set(table["runs"])],
        }
    except (OSError, *BAD_JSON, KeyError, TypeError) as error:
        raise UserError(f"cannot read sample={file} ({one_line(error)}): make it again from whole runs") from error


def _of(setting: dict[str, Any], hashes: set[str]) -> dict[str, Any]:
    """A setting with those of its runs that are among `hashes`."""
    places = [index for index, name in enumerate(setting["runs"]) if name in hashes]

    def cut(rows: list[Any]) -> list[Any]:
        return [rows[index] for index in places]

    questions = [
        {key: cut(value) if key in OF_RUNS else value for key, value in question.items()}
        for question in setting["questions"]
    ]
    return {**setting, "runs": cut(setting["runs"]), "agreement": cut(setting["agreement"]), "questions": questions}


def add_agreement(sample: Sample, frame: pd.DataFrame) -> None:
    """Add "agreement" to every setting: benchmark -> percent for each run, as `full_summary` gives it."""
    rows = frame.dropna(subset="agreement").round({"agreement": 2})
    by_run = {run: dict(zip(of["benchmark"], of["agreement"], strict=True)) for run, of in rows.groupby("hash")}
    for setting in sample["settings"]:
        setting["agreement"] = [by_run.get(run, {}) for run in setting["runs"]]


def filled(frame: pd.DataFrame, sample: Sample) -> pd.DataFrame:
    """Fill in the agreement from the sample where the runs themselves have none."""
    kept = {
        (run, benchmark): percent
        for setting in sample["settings"]
        for run, agreement in zip(setting["runs"], setting["agreement"], strict=True)
        for benchmark, percent in agreement.items()
    }
    cells = zip(frame["hash"], frame["benchmark"], strict=True)
    return frame.assign(agreement=frame["agreement"].fillna(pd.Series([kept.get(cell) for cell in cells], frame.index)))


def informative(right: np.ndarray, count: int) -> list[int]:
    """Choose the `count` columns of `right` [R, Q] that show the most differences between runs.

    Greedy: next comes the question with the most pairs of runs, A right and B wrong, that no chosen question shows.
    Ties go to the question that splits the runs more evenly, then to the first. NaN: neither right nor wrong.
    """
    yes, no = (right == 1).astype(np.int64), (right == 0).astype(np.int64)
    even = yes.sum(0) * no.sum(0)
    open_pairs = np.ones((len(right), len(right)), np.int64)
    chosen: list[int] = []
    for _ in range(min(count, right.shape[1])):
        gain = np.einsum("aq,aq->q", yes, open_pairs @ no)
        rank = gain * (even.max(initial=0) + 1) + even
        rank[chosen] = -1
        best = int(rank.argmax())
        chosen.append(best)
        open_pairs *= 1 - np.outer(yes[:, best], no[:, best])
    return sorted(chosen)


def varied(texts: Sequence[Sequence[str]], count: int) -> list[int]:
    """Choose the `count` questions with the most different answers, where there are no scores; `texts` [Q][R]."""
    ranked = sorted(range(len(texts)), key=lambda q: (-len(set(texts[q])), q))
    return sorted(ranked[:count])


def overlap(runs: Sequence[Recorded]) -> tuple[np.ndarray, float | None, int]:
    """Return the mean Jaccard index [R, R] of kept tokens, that of two random selections, and the number of questions.

    Questions count if every run recorded which tokens it kept, kept some and dropped others; NaN if there is none.
    """
    shared = sorted(set.intersection(*(run.partly_kept() for run in runs)))
    if not shared:
        return np.full((len(runs), len(runs)), np.nan), None, 0
    n, k = runs[0].sizes[[runs[0].rows[question] for question in shared]].T
    size = (n + 7) // 8  # bytes of a mask
    ends = np.cumsum(size) - size
    masks = []
    for run in runs:
        starts = run.starts[[run.rows[question] for question in shared]]
        masks.append(run.bits[np.repeat(starts - ends, size) + np.arange(size.sum())])
    mean = np.eye(len(runs))
    for a in range(len(runs)):
        for b in range(a):
            both = np.add.reduceat(np.bitwise_count(masks[a] & masks[b]), ends, dtype=np.int64)
            either = np.add.reduceat(np.bitwise_count(masks[a] | masks[b]), ends, dtype=np.int64)
            mean[a, b] = mean[b, a] = (both / either).mean()
    return mean, float((k / (2 * n - k)).mean()), len(shared)
