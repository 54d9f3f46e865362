"""Compare two runs on the same questions: python -m harness.compare results/runs/.../A results/runs/.../B."""

import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from harness.core.command import command
from harness.core.console import print_json, say, table_lines
from harness.core.errors import UserError
from harness.core.escape import csv
from harness.core.files import check_file, from_json, json_line, path_of, write_atomic
from harness.results import archive
from harness.results.frames import answers, questions, select_task
from harness.results.labels import differing, sample_notes, title
from harness.results.result import Result, average, collect, failures, relative, unproven
from harness.results.run_folder import RESPONSES
from harness.results.stats import AVERAGE, Estimate, Noise, agreement, flips, holm, mcnemar_p, noise

SHOWN = 4  # runs that a message names
P_NOTE = "p tests A - B = 0 and treats pictures as independent; McNemar's p treats questions as independent"
HEAD = (
    *("task", "questions", "A", "B", "A - B", "95 % interval", "A only", "B only"),
    *("p", "p (Holm)", "McNemar", "same answers"),
)


def prepare(overrides: list[str]) -> list[str]:
    """Name two folders that are given without a key `a` and `b`."""
    folders = [text for text in overrides if "=" not in text or Path(text).is_dir()]
    if len(folders) > 2:
        raise UserError(f"two run folders are compared, got {len(folders)}: {', '.join(folders)}")
    named = [f"{key}={json_line(folder)}" for key, folder in zip("ab", folders, strict=False)]
    others = [text for text in overrides if text not in folders]
    if twice := {text[0] for text in named} & {text.partition("=")[0] for text in others}:
        key = min(twice)
        raise UserError(f"{key} is given twice, as {key}= and as a folder without a key: leave one of them out")
    return others + named


def check(cfg: DictConfig) -> None:
    """Raise UserError unless two different folders are given."""
    for key in ("a", "b"):
        if cfg[key] is None:
            raise UserError(f"{key} is null: pass two run folders, as in python -m harness.compare FOLDER FOLDER")
        path_of(cfg[key], key)
    check_file(cfg.csv, "csv")
    if os.path.realpath(str(cfg.a)) == os.path.realpath(str(cfg.b)):
        raise UserError(f"a and b are one folder, {cfg.a}: pass two")


def compare(a: Result, b: Result, baseline: Result | None) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return a row per task, and with a `baseline` one for the average of percentages, with the columns of HEAD.

    `difference` is A's score minus B's, `p` that of no difference of this number. `a_only` counts questions on which A
    scores more (A is right and B wrong). Holm's correction is over the tasks. `mcnemar` is McNemar's exact p, where the
    score is a share of right answers; it takes questions about one picture as independent. Also returns the tasks whose
    error is unknown, with the reason.
    """
    scores, errors = questions([a, b]), noise([a, b], baseline)
    texts = answers([a, b]) if all((run.folder / RESPONSES).is_file() for run in (a, b)) else None
    rows = [_task(task, a, b, scores, errors, texts) for task in a.metrics["primary"]]
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    if baseline is not None:
        mean_a, mean_b = (average(relative(run, baseline)) for run in (a, b))
        if mean_a is not None and mean_b is not None:
            row = {"task": AVERAGE, "questions": len(scores), "a": mean_a, "b": mean_b, "difference": mean_a - mean_b}
            rows.append(row | _test(errors.shares.get(AVERAGE), errors, a, b))
    return pd.DataFrame(rows), errors.untested


def _task(
    task: str, a: Result, b: Result, scores: pd.DataFrame, errors: Noise, texts: pd.DataFrame | None
) -> dict[str, Any]:
    task_scores = select_task(scores, task)
    scores_a, scores_b = task_scores[a.hash], task_scores[b.hash]
    unknown = (scores_a.isna() | scores_b.isna()).any()
    b_only, a_only = (math.nan, math.nan) if unknown else flips(scores_a, scores_b)
    same = math.nan if texts is None else agreement(*(select_task(texts, task)[run.hash] for run in (a, b)))
    difference = a.score(task) - b.score(task)
    row = {"task": task, "questions": len(scores_a), "a": a.score(task), "b": b.score(task), "difference": difference}
    row |= _test(errors.scores.get(task), errors, a, b)
    is_share = errors.questions.get(task)  # of right answers
    row["mcnemar"] = mcnemar_p(int(a_only), int(b_only)) if is_share else math.nan
    return row | {"a_only": a_only, "b_only": b_only, "agreement": same}


def _test(estimate: Estimate | None, errors: Noise, a: Result, b: Result) -> dict[str, float]:
    """Return the interval of A's value minus B's, and the p of no difference; NaN where the error is unknown."""
    if estimate is None:
        return dict.fromkeys(("low", "high", "p"), math.nan)
    return dict(zip(("low", "high", "p"), estimate.difference(errors.place(a.hash), errors.place(b.hash)), strict=True))


def text(comparison: pd.DataFrame) -> str:
    """Format the comparison as aligned columns."""
    rows = [HEAD]
    for row in comparison.to_dict("records"):
        digits = 2 if row["task"] == AVERAGE or abs(row["a"]) > 1 or abs(row["b"]) > 1 else 4
        span = "-" if math.isnan(row["low"]) else f"{row['low']:+.{digits}f} to {row['high']:+.{digits}f}"
        name = f"{row['task']} (%)" if row["task"] == AVERAGE else str(row["task"])
        rows.append(
            (
                *(name, f"{row['questions']}", f"{row['a']:.{digits}f}", f"{row['b']:.{digits}f}"),
                *(f"{row['difference']:+.{digits}f}", span, _shown(row["a_only"], ".0f"), _shown(row["b_only"], ".0f")),
                *(_p(row["p"]), _p(row["p_holm"]), _p(row["mcnemar"]), _shown(row["agreement"], ".1f", " %")),
            )
        )
    return "\n".join(table_lines(rows))


def _shown(item: float, form: str, unit: str = "") -> str:
    return "-" if pd.isna(item) else f"{item:{form}}{unit}"


def _p(p: float) -> str:
    return "-" if pd.isna(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def baseline_of(a: Result, b: Result) -> Result | None:
    """Return the unpruned run of both: one of them, or one in the parent folder of A; None if there is none."""
    if a.setting != b.setting:
        return None
    candidates = [a, b] if a.is_baseline or b.is_baseline else collect(a.folder.absolute().parent)
    return next((run for run in candidates if run.is_baseline and run.setting == a.setting), None)


def main(cfg: DictConfig) -> None:
    """Print the comparison, then one JSON line."""
    check(cfg)
    a, b = (Result.of(_archived(Path(str(cfg[key])))) for key in ("a", "b"))
    if a.folder == b.folder:
        raise UserError(f"a and b are one run, {a.folder}: pass two")
    baseline = baseline_of(a, b)
    comparison, untested = compare(a, b, baseline)
    if cfg.csv is not None:
        write_atomic(Path(str(cfg.csv)), csv(comparison, float_format="%.6g"))
    settings = _settings(a, b)
    for name, run in (("A", a), ("B", b)):
        say(f"{name}: {' '.join(filter(None, [title(run), run.budget]))} on {run.about['model']}  ({run.folder})")
    differences = "; ".join(f"{key}: {value_a} / {value_b}" for key, (value_a, value_b) in settings.items())
    say(f"settings that differ: {differences}" if differences else "settings: the same")
    print(f"\n{text(comparison)}\n")
    for note in _notes(comparison, untested, baseline, a, b):
        say(note)
    report = {"a": str(a.folder), "b": str(b.folder), "settings": settings}
    rows = from_json(comparison.to_json(orient="records"))
    print_json(report | {"tasks": {row.pop("task"): row for row in rows}})


def _archived(path: Path) -> Path:
    """Return the run that a pattern such as "idpruner*" matches in an archive; other paths as they are."""
    if "*" not in str(path) or path.exists() or (folder := archive.enclosing(path)) is None:
        return path
    runs = [folder / run.name for run in archive.read(folder)]
    if len(matching := [run for run in runs if run.match(str(path))]) != 1:
        names = ", ".join(str(run.relative_to(folder)) for run in (matching or runs)[:SHOWN])
        hint = "write more of its name" if matching else "no such run"
        raise UserError(f"{path} matches {len(matching)} runs of the archive, expected 1 ({hint}): it has {names}")
    return matching[0]


def _settings(a: Result, b: Result) -> dict[str, list[Any]]:
    """Return the settings that differ, without the budget, and without what follows from different methods."""
    expected = ("budget",) if a.method == b.method else ("budget", "method")
    pairs = {key: pair for key, pair in differing([a, b]).items() if key.partition(".")[0] not in expected}
    if a.method != b.method and None in pairs.get("scorer", ()):  # only one of the methods has a scorer
        del pairs["scorer"]
    return pairs


def _notes(
    comparison: pd.DataFrame, untested: dict[str, str], baseline: Result | None, a: Result, b: Result
) -> list[str]:
    notes = [*sample_notes([a, b]), *failures([a, b]), P_NOTE]
    notes += [f"untested: {task}, since {why}" for task, why in untested.items() if task in set(comparison["task"])]
    if baseline is None:
        missing = f"no unpruned run of their settings is in {a.folder.parent}"
        reason = "their settings differ" if a.setting != b.setting else missing
        notes.append(f"no average of percentages: {reason}")
    if comparison.loc[comparison["task"] != AVERAGE, "agreement"].isna().all():
        notes.append("same answers: unknown, since a run has no responses.jsonl")
    return [*notes, *unproven([a, b])]


if __name__ == "__main__":
    command("compare", main, (check,), prepare)
