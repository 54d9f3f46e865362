"""Standard errors of lmms-eval's metrics, confirmed by NumPy from each metric's definition.

The runs are of lmms-eval's own tasks, on data in the real columns with several questions per picture.
"""

import math
import socket
import time
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
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

from harness.evaluation import noise as module
from harness.evaluation.noise import noise
from harness.evaluation.task_suite import EVERY
from harness.results.metrics import value
from harness.results.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("alone")


def score(several, task, tmp_path, seed=0):
    model = Scripted(answers(several, task, seed))
    metrics, values = suite(several, task, TASKS[task][0]).run(model, EVERY, tmp_path)
    return metrics["scores"][task], metrics["noise"][task], values[task]


def error(record):
    """Return the standard error that a reader computes from a record."""
    influence = np.array(record["influence"])
    assert len(influence) == len(record["clusters"]) == len(set(record["clusters"]))
    assert influence.sum() == pytest.approx(0, abs=1e-6 * np.abs(influence).max(initial=1e-9))
    return math.sqrt(len(influence) / (len(influence) - 1) * (influence**2).sum())


def by_picture(record, effects, pictures):
    """Compare a record of pictures with the effects of units, each on one picture."""
    expected = dict.fromkeys(pictures, 0.0)
    for effect, picture in zip(effects, pictures, strict=True):
        expected[picture] += effect
    assert record["from"] == "units"
    assert dict(zip(record["clusters"], record["influence"], strict=True)) == pytest.approx(expected, abs=1e-7)


def bootstrapped(clusters, statistic, resamples=600):
    """Return the standard error of a statistic of questions when whole clusters are drawn."""
    rng = np.random.default_rng(0)
    names = sorted(set(clusters))
    places = [np.flatnonzero(np.array(clusters) == name) for name in names]
    draws = [
        statistic(np.concatenate([places[i] for i in rng.integers(0, len(names), len(names))]))
        for _ in range(resamples)
    ]
    return np.std(draws, ddof=1)


def effects_on_means(values, category):
    """Return the effect of each value on the sum of the means of its category's values."""
    effects = np.zeros(len(values))
    for name in set(category):
        of_name = category == name
        effects[of_name] = (values[of_name] - values[of_name].mean()) / of_name.sum()
    return effects


def test_f1_of_pope_has_the_error_of_leaving_out_each_group_of_pictures(several, tmp_path):
    scores, records, values = score(several, "pope", tmp_path)
    rows, pictures = values["pope_f1_score,none"], values["picture"]
    names = sorted(set(pictures))
    assert (len(pictures), len(names)) == (252, 84)  # so that 20 groups have two pictures, and 44 have one
    group = np.array([names.index(picture) % 64 for picture in pictures])
    without = np.array([f1(rows, group != left_out) for left_out in range(64)])
    record = records["pope_f1_score,none"]
    assert (record["from"], record["clusters"]) == ("jackknife", [str(place) for place in range(64)])
    assert record["influence"] == pytest.approx((without.mean() - without) * 63 / 64, rel=1e-6, abs=1e-12)
    assert scores["pope_f1_score,none"] == pytest.approx(f1(rows, np.arange(252)))
    assert error(record) == pytest.approx(bootstrapped(group, lambda places: f1(rows, places)), rel=0.1)
    # of 64 groups, an error has an error of its own of 9 %
    assert error(record) == pytest.approx(bootstrapped(pictures, lambda places: f1(rows, places)), rel=0.25)
    assert {records[f"pope_{name},none"]["from"] for name in ("precision", "recall")} == {"jackknife"}


def test_accuracy_of_pope_has_the_error_of_a_mean_over_pictures(several, tmp_path):
    scores, records, values = score(several, "pope", tmp_path)
    right = np.array([row["score"] for row in values["pope_accuracy,none"]])
    by_picture(records["pope_accuracy,none"], (right - right.mean()) / len(right), values["picture"])
    clustered = bootstrapped(values["picture"], lambda places: right[places].mean())
    assert error(records["pope_accuracy,none"]) == pytest.approx(clustered, rel=0.1)
    assert records.keys() == scores.keys()


def test_mme_is_scored_by_pairs_in_categories(several, tmp_path):
    _, records, values = score(several, "mme", tmp_path)
    points, category, pictures = pairs_of_mme(values)
    assert 1 < len(points) / len(set(pictures)) < 3
    record = records["mme_perception_score,none"]
    by_picture(record, effects_on_means(points, category), pictures)

    def total(places):
        return sum(points[places][category[places] == name].mean() for name in set(category))

    assert error(record) == pytest.approx(bootstrapped(pictures, total), rel=0.12)
    assert records["mme_cognition_score,none"]["from"] == "units"


@pytest.mark.parametrize("task", ["mmbench_en_dev_static", "mmbench_cn_dev_static"])
def test_mmbench_is_scored_by_questions_with_all_their_turns(task, several, tmp_path):
    scores, records, values = score(several, task, tmp_path)
    right, pictures = turns_of_mmbench(values)
    assert scores["gpt_eval_score,none"] == pytest.approx(right.mean())
    assert 0 < right.mean() < 100
    by_picture(records["gpt_eval_score,none"], (right - right.mean()) / len(right), pictures)
    assert len(pictures) == 2 * len(set(pictures))
    clustered = bootstrapped(pictures, lambda places: right[places].mean())
    assert error(records["gpt_eval_score,none"]) == pytest.approx(clustered, rel=0.15)


def test_mmstar_is_a_mean_over_categories(several, tmp_path):
    _, records, values = score(several, "mmstar", tmp_path)
    rows = values["average,none"]
    right, category = (np.array([row[key] for row in rows]) for key in ("score", "l2_category"))
    effects = effects_on_means(right, category) / len(set(category))
    by_picture(records["average,none"], effects, values["picture"])


def test_seedbench_is_a_mean_over_questions_of_which_videos_are_a_part(several, tmp_path):
    scores, records, values = score(several, "seedbench", tmp_path)
    for metric in ("seed_all,none", "seed_image,none", "seed_video,none"):
        rows = [(row, name) for row, name in zip(values[metric], values["picture"], strict=True) if row]
        right = np.array([float(row["pred"] == row["answer"]) for row, _ in rows])
        assert scores[metric] == pytest.approx(right.mean())
        by_picture(records[metric], (right - right.mean()) / len(right), [name for _, name in rows])


def test_ocrbench_is_a_mean_although_its_code_adds_up_all_calls(several, tmp_path):
    scores, records, values = score(several, "ocrbench", tmp_path)
    right = np.array([row["score"] for row in values["ocrbench_accuracy,none"]])
    assert 0 < scores["ocrbench_accuracy,none"] < 1
    by_picture(records["ocrbench_accuracy,none"], (right - right.mean()) / len(right), values["picture"])


def test_a_mean_of_numbers_needs_no_more_than_the_numbers(several, tmp_path):
    scores, records, values = score(several, "docvqa_val", tmp_path)
    assert records == {"anls,none": {"from": "questions", "scale": 1}}
    assert scores["anls,none"] == pytest.approx(np.mean(values["anls,none"]))


def test_vinoground_is_scored_by_groups_of_several_videos(several, tmp_path):
    tasks = suite(several, "vinoground", "vinoground_score,none[2]")
    docs = tasks.load("vinoground").task_docs
    show_vinoground(docs)
    given = [str(letter) for letter in np.random.default_rng(0).choice(["A", "B"], len(docs))]
    metrics, values = tasks.run(Scripted({"vinoground": given}), EVERY, tmp_path / "out")
    pairs, clusters = groups_of_vinoground(values["vinoground"])
    text, video = np.moveaxis(pairs, 2, 0)
    for place, points in enumerate((text, video, np.minimum(text, video))):
        assert metrics["scores"]["vinoground"]["vinoground_score,none"][place] == pytest.approx(points.mean())
        effects = (points - points.mean()).sum(axis=1) / 500  # two groups have five videos
        record = metrics["noise"]["vinoground"][f"vinoground_score,none[{place}]"]
        assert record["from"] == "units"
        expected = dict(zip(clusters, effects, strict=True))
        assert dict(zip(record["clusters"], record["influence"], strict=True)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("task", ["mme", "mmbench_en_dev_static"])
def test_clusters_are_the_same_in_all_runs(task, several, tmp_path):
    runs = [score(several, task, tmp_path, seed)[1][TASKS[task][0]] for seed in (1, 2, None)]
    assert runs[0]["clusters"] == runs[1]["clusters"] == runs[2]["clusters"]
    assert runs[0]["influence"] != runs[1]["influence"]
    assert set(runs[2]["influence"]) == {0}


def tree(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("task", ["mmbench_en_dev_static", "ocrbench"])
def test_more_aggregations_leave_scores_files_and_output_as_they_were(task, several, tmp_path, monkeypatch, capfd):
    runs = []
    for step in (noise, lambda *_: {}):
        monkeypatch.setattr("harness.evaluation.task_suite.noise", step)
        folder = tmp_path / f"run{len(runs)}"
        (folder / "cwd").mkdir(parents=True)
        monkeypatch.chdir(folder / "cwd")
        metrics, values = suite(several, task).run(Scripted(answers(several, task, 0)), EVERY, folder / "submissions")
        noted = metrics.pop("noise")[task]
        runs.append((metrics, values, tree(folder), capfd.readouterr().out))
        assert bool(noted) == (len(runs) == 1)
    assert runs[0] == runs[1]
    assert runs[0][2].keys()


def test_records_stay_when_tables_show_another_metric(several, tmp_path):
    metrics, values = suite(several, "pope").run(Scripted(answers(several, "pope", 0)), EVERY, tmp_path)
    folder = RunFolder(tmp_path / "run", {})
    folder.open({})
    folder.finish(metrics, values, {})
    folder.show({"pope": "pope_f1_score,none"})
    shown = folder.metrics()
    assert shown["primary"] == {"pope": "pope_f1_score,none"} != metrics["primary"]
    assert shown == metrics | {"primary": shown["primary"]}
    assert len((folder.path / "metrics.json").read_text().splitlines()) < 40  # people read it
    assert shown["noise"]["pope"]["pope_f1_score,none"]["from"] == "jackknife"


def made_up(aggregation, values, pictures=None, score=None, aggregations=None):
    """Return the record of a metric with this aggregation, which a new Task object gets from `aggregations()`."""
    made = aggregations or (lambda: aggregation)
    pictures = pictures or [f"{i:016}" for i in range(len(values))]
    questions = {"doc_id": list(range(len(values))), "picture": pictures, "m,none": values}
    items = {"m,none": dict(enumerate(values))}
    whole = made()(list(values)) if score is None else score
    load = lambda: (lambda function: SimpleNamespace(aggregation=lambda: {"m": function}))(made())  # noqa: E731
    return noise(load, Namespace(output_path="unused"), items, {"m,none": whole}, questions, None)["m,none"]


RECORDS = [{"said": i % 3, "true": 1 + i % 2} for i in range(40)]


def ratio(items):
    return sum(item["said"] for item in items) / sum(item["true"] for item in items)


def test_cider_has_the_error_of_leaving_out_pictures():
    """CIDEr weighs words by all captions of the task, so it is no mean over pictures."""
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    words = ["a", "dog", "cat", "on", "the", "mat", "red", "ball", "runs", "sleeps"]
    rng = np.random.default_rng(0)

    def caption():
        return " ".join(rng.choice(words, 6))

    values = [{"pred": caption(), "answer": [caption() for _ in range(3)]} for _ in range(48)]
    pictures = [f"{i // 2:016}" for i in range(48)]

    def of(items):
        said = {place: [item["pred"]] for place, item in enumerate(items)}
        return cider.Cider().compute_score({place: item["answer"] for place, item in enumerate(items)}, said)[0]

    without = np.array([of(values[: 2 * i] + values[2 * i + 2 :]) for i in range(24)])
    record = made_up(of, values, pictures)
    assert record["from"] == "jackknife"
    assert record["influence"] == pytest.approx((without.mean() - without) * 23 / 24, rel=1e-6)


def test_a_question_without_picture_is_a_cluster_of_its_own():
    items = [{"score": float(i % 2)} for i in range(6)]
    record = made_up(lambda rows: np.mean([row["score"] for row in rows]), items, ["b", "", "b", "a", "", "a"])
    assert record["clusters"] == ["1", "4", "a", "b"]
    assert record["influence"] == pytest.approx([0.5 / 6, -0.5 / 6, 1 / 6, -1 / 6])


def test_what_an_aggregation_adds_up_across_calls_reaches_no_other_call():
    def adding():
        seen = []

        def aggregate(items):
            seen.extend(items)
            return ratio(seen)

        return aggregate

    record = made_up(None, RECORDS, aggregations=adding)
    assert record == made_up(ratio, RECORDS)
    assert record["from"] == "jackknife"


def test_what_an_aggregation_changes_in_its_records_reaches_no_other_call():
    def popping(items):
        return sum(item.pop("said") for item in items) / sum(item.pop("true") for item in items)

    assert made_up(popping, RECORDS, score=ratio(RECORDS)) == made_up(ratio, RECORDS)
    assert RECORDS[1] == {"said": 1, "true": 2}


def reason(aggregation, values=RECORDS, **more):
    record = made_up(aggregation, values, **more)
    assert record["from"] is None
    return record["reason"]


def test_an_aggregation_that_fails_without_some_questions_says_so():
    def per_rare(items):
        return sum(item["said"] for item in items) / sum(item["rare"] for item in items)

    values = [item | {"rare": place == 3} for place, item in enumerate(RECORDS)]
    assert reason(per_rare, values) == (
        "without group 3 of 40 of its pictures, its aggregation fails (ZeroDivisionError: division by zero)"
    )


def test_an_aggregation_that_leaves_the_process_says_so():
    def leave(items):
        raise SystemExit("no such file")

    assert reason(leave, score=1.0) == "called again, its aggregation fails (SystemExit: no such file)"


def test_an_aggregation_that_gives_another_score_when_called_again_is_not_believed():
    calls = []
    assert reason(lambda items: calls.append(0) or ratio(items) + len(calls), score=ratio(RECORDS)).startswith(
        "called again, its aggregation gives "
    )


def test_a_score_that_is_no_number_without_some_pictures_has_no_error():
    assert "without group 0 of 40" in reason(lambda items: ratio(items) if len(items) == 40 else math.nan)


def test_a_judge_is_not_asked_again(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))

    def judge(items):
        for _ in range(3):
            try:
                socket.create_connection(("judge.example", 443))
            except Exception:  # as tasks do, to try again
                time.sleep(60)
        return 0.5

    assert reason(judge, score=0.5) == "called again, its aggregation opens a connection, as to a judge"
    assert asked == []


def test_a_slow_aggregation_is_called_once_or_twice(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "SECONDS", 0.1)

    def slow(items):
        calls.append(len(items))
        time.sleep(0.01)
        return ratio(items)

    assert reason(slow, score=ratio(RECORDS)).startswith("its aggregation is too slow: 40 calls of 0.0 s are more than")
    assert len(calls) < 10


def test_one_picture_has_no_error():
    assert reason(ratio, pictures=["a"] * 40) == "it has only one picture, or one question without"


def test_a_metric_that_lmms_eval_computes_from_others_says_so():
    questions = {"doc_id": [0, 1], "picture": ["a", "b"]}
    task = SimpleNamespace(aggregation=dict)
    told = "lmms-eval computes it from something else than values of questions"
    records = noise(lambda: task, Namespace(), {}, {"m_expected_accuracy,none": 0.5}, questions, None)
    assert records == {"m_expected_accuracy,none": {"from": None, "reason": told}}


def test_a_key_that_joins_many_questions_is_no_unit():
    """Half of the questions share an index, of which the means give the score back."""
    values = [{"index": place % 2, "score": float(place % 3 == 0)} for place in range(48)]
    record = made_up(lambda items: np.mean([item["score"] for item in items]), values)
    assert len(record["clusters"]) == 48


def test_units_that_give_the_score_back_by_chance_are_not_believed():
    """The mean over questions equals the ratio on all questions, but not on a part of them."""
    low, high = {"said": 1, "true": 2}, {"said": 3, "true": 2}
    values = [{"said": 1, "true": 1}] * 30 + [low, *[high] * 4, *[low] * 4, high]
    assert np.mean([ratio([item]) for item in values]) == ratio(values)
    record = made_up(ratio, values)
    without = np.array([ratio(values[:i] + values[i + 1 :]) for i in range(40)])
    assert record["from"] == "jackknife"
    assert record["influence"] == pytest.approx((without.mean() - without) * 39 / 40, rel=1e-6)


def test_the_scale_of_a_score_of_0_is_what_one_right_answer_scores():
    assert made_up(lambda items: 100 * sum(items) / len(items), [0.0] * 5) == {"from": "questions", "scale": 100}
    assert made_up(lambda items: sum(items) / len(items), [False] * 5) == {"from": "questions", "scale": 1}


def test_numbers_of_a_list_have_records_of_their_own_but_a_long_list_has_only_what_tables_show():
    def pair(items):
        return [np.mean([item["said"] for item in items]), ratio(items)]

    questions = {"doc_id": list(range(40)), "picture": [f"{i:016}" for i in range(40)]}
    load = lambda: SimpleNamespace(aggregation=lambda: {"m": pair})  # noqa: E731
    args = load, Namespace(), {"m,none": dict(enumerate(RECORDS))}
    records = noise(*args, {"m,none": pair(RECORDS)}, questions, "m,none[1]")
    assert {name: record["from"] for name, record in records.items()} == {
        "m,none[0]": "units",
        "m,none[1]": "jackknife",
    }
    long = noise(*args, {"m,none": [0.5] * 30}, questions, "m,none[7]")
    assert list(long) == ["m,none[7]"]
    assert value({"m,none": pair(RECORDS)}, "m,none[1]") == ratio(RECORDS)
