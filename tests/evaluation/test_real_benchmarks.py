"""What a table says of real benchmarks: intervals and marks, confirmed by drawing pictures by hand."""

import numpy as np
import pytest
from run_folders import make_run
from scripted_model import Scripted
from several_questions import (
    TASKS,
    answers,
    f1,
    groups_of_vinoground,
    pairs_of_mme,
    show_vinoground,
    suite,
    turns_of_mmbench,
)

from harness.evaluation.task_suite import EVERY
from harness.results.result import Result
from harness.results.summary import summary

SHOWN = {task: TASKS[task][0] for task in ("pope", "mme", "mmbench_en_dev_static", "seedbench")}
SHOWN["vinoground"] = "vinoground_score,none[2]"


pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def runs(several, tmp_path):
    """Return an unpruned run, one with few other answers and one with many, over five benchmarks."""
    folder, made = tmp_path / "runs", []
    docs = suite(several, "vinoground").load("vinoground").task_docs
    show_vinoground(docs)
    for method, wrong in (("none", 0.1), ("near", 0.25), ("bad", 0.6)):
        each, scores, records = {}, {}, {}
        for task, metric in SHOWN.items():
            truth = list(docs["answer"]) if task == "vinoground" else answers(several, task, 0)[task]
            wrong_answer = "C" if task == "vinoground" else TASKS[task][2]
            right = np.random.default_rng(7).random(len(truth)) >= wrong  # the same questions are hard for all
            given = [answer if good else wrong_answer for answer, good in zip(truth, right, strict=True)]
            metrics, values = suite(several, task, metric).run(Scripted({task: given}), EVERY, folder / method)
            each[task] = {name: column for name, column in values[task].items() if name != "doc_id"}
            scores |= metrics["scores"]
            records |= metrics["noise"]
        made.append(make_run(folder / "all", method, each, scores=scores, noise=records))
        made[-1].show(SHOWN)
    return [Result.of(run) for run in made]


def statistics_of(result):
    """Return for each task the picture of each question, and the metric's definition for chosen questions."""
    of = result.per_question
    pope, (points, category, shown) = of["pope"], pairs_of_mme(of["mme"])
    right, turned = turns_of_mmbench(of["mmbench_en_dev_static"])
    seed = of["seedbench"]
    seen = [(row, p) for row, p in zip(seed["seed_all,none"], seed["picture"], strict=True) if row is not None]
    correct = np.array([row["pred"].lower() == row["answer"].lower() for row, _ in seen])
    groups, joined = groups_of_vinoground(of["vinoground"])
    both = groups.min(axis=2).mean(axis=1)  # text and videos right, of two groups
    return {
        "pope": (pope["picture"], lambda at: f1(pope["pope_f1_score,none"], at)),
        "mme": (
            shown,
            lambda at: sum(points[at][category[at] == name].mean() for name in set(category)),
        ),
        "mmbench_en_dev_static": (turned, lambda at: right[at].mean()),
        "seedbench": ([picture for _, picture in seen], lambda at: correct[at].mean()),
        "vinoground": (joined, lambda at: both[at].mean()),
    }


def test_real_benchmarks_have_intervals_and_marks_that_drawn_pictures_confirm(runs):
    """Pictures are drawn by hand, the same for all runs, and every score follows from its definition."""
    frame, notes = summary(runs)
    assert frame["tested"].all()
    assert not [note for note in notes if "untested" in note]
    by_run = [statistics_of(run) for run in runs]
    rng, draws = np.random.default_rng(0), []
    names = sorted({picture for pictures, _ in by_run[0].values() for picture in pictures})
    places = {t: {name: np.flatnonzero(np.array(ps) == name) for name in names} for t, (ps, _) in by_run[0].items()}
    for task, (pictures, of) in by_run[1].items():
        assert runs[1].score(task) == pytest.approx(of(np.arange(len(pictures))))
    while len(draws) < 400:
        drawn = [names[i] for i in rng.integers(0, len(names), len(names))]
        at = {task: np.concatenate([of[name] for name in drawn]) for task, of in places.items()}
        with np.errstate(invalid="ignore"):
            scores = np.array([[of(at[task]) for task, (_, of) in tasks.items()] for tasks in by_run])
        if np.isfinite(scores).all():
            draws.append((100 * scores / scores[0]).mean(axis=1))
    spread = np.array(draws)
    cells = frame[frame["benchmark"] == "avg"].set_index("hash").loc[[run.hash for run in runs]]
    for place in (1, 2):
        assert cells["relative_se"].iloc[place] == pytest.approx(spread[:, place].std(ddof=1), rel=0.35)
    gap = cells["relative"].iloc[1] - cells["relative"].iloc[2]
    assert gap > 4 * (spread[:, 1] - spread[:, 2]).std()
    assert cells["best"].tolist() == [False, True, False]
    assert cells["p_best"].iloc[2] < 0.001
