"""What each picture does to a score is read from a run, or a reason why it is unknown."""

import math

import numpy as np
import pytest
from run_folders import make_run
from scipy import stats as reference

from harness.results.benchmarks import greatest
from harness.results.frames import questions
from harness.results.influence import Untested, influence, number
from harness.results.result import Result
from harness.results.stats import AVERAGE, noise
from harness.results.summary import summary


def results(*folders):
    return [Result.of(folder) for folder in folders]


def asked(values, pictures):
    """One task whose questions show pictures, as `make_run` takes it."""
    return {"t_one": {"picture": [str(picture) for picture in pictures], "acc,none": [float(v) for v in values]}}


def alike(rng, pictures, each, share, correlation):
    """Right and wrong answers [pictures * each] with a correlation of the latent numbers within a picture."""
    latent = math.sqrt(correlation) * rng.standard_normal((pictures, 1))
    latent = latent + math.sqrt(1 - correlation) * rng.standard_normal((pictures, each))
    return (latent < reference.norm.ppf(share)).astype(float).ravel()


def test_pictures_are_counted_and_questions_of_one_are_a_cluster(tmp_path):
    rng = np.random.default_rng(0)
    base = alike(rng, 30, 8, 0.9, 0.4)
    mine, names = base * alike(rng, 30, 8, 0.8, 0.4), np.repeat(range(30), 8)
    spread = list(range(240))
    widths = []
    for place, pictures in (("one", names), ("two", spread)):
        runs = [make_run(tmp_path / place, m, asked(v, pictures)) for m, v in (("none", base), ("x", mine))]
        frame, notes = summary(results(*runs))
        shared = "several questions are about one picture (t_one: 240 on 30 pictures)"
        assert any(note.startswith(shared) for note in notes) == (place == "one")
        cell = frame.set_index(["hash", "benchmark"]).loc[results(runs[1])[0].hash, "t_one"]
        assert cell["pictures"] == len(set(pictures))
        widths.append(cell["high"] - cell["low"])
    assert widths[0] > 1.2 * widths[1]


def test_a_record_of_the_run_takes_precedence(tmp_path):
    record = {"from": "jackknife", "clusters": ["0", "1", "2"], "influence": [0.1, -0.1, 0.0]}
    (run,) = results(
        make_run(tmp_path, each={"t": [1.0, 0.0]}, scores={"t": {"f1,none": 0.4}}, noise={"t": {"f1,none": record}})
    )
    found = influence(run, "t")
    assert (found.clusters, found.values.tolist(), found.questions) == (("t/0", "t/1", "t/2"), [0.1, -0.1, 0.0], 0)
    with pytest.raises(Untested, match="a part of them has none"):
        influence(run, "t", lambda cluster: True)


def test_pictures_and_groups_of_them_are_not_mixed(tmp_path):
    """As when a score is 0, which its pictures give back, too."""
    runs = []
    for method, way in (("none", "jackknife"), ("x", "units")):
        record = {"from": way, "clusters": ["0" * 16, "1" * 16], "influence": [0.1, -0.1]}
        runs.append(make_run(tmp_path, method, {"t": [1.0, 0.0]}, noise={"t": {"acc,none": record}}))
    reason = "its runs are known in different ways, by pictures and by groups of pictures"
    assert summary(results(*runs))[1] == [f"untested: t, since {reason}"]


def test_what_has_no_record_and_does_not_follow_from_its_questions_is_untested(tmp_path):
    scores = {"t_one": {"acc,none": 0.3}}
    runs = [make_run(tmp_path, m, {"t_one": [1.0, 0.0], "t_two": [1.0] * 10}, scores=scores) for m in ("none", "x")]
    frame, notes = summary(results(*runs))
    reason = "the run does not say how its score follows from its questions: run it again"
    assert notes == [f"untested: t_one, since {reason}"]
    by_benchmark = frame.groupby("benchmark")
    assert by_benchmark["tested"].all().to_dict() == {"t_one": False, "t_two": True, AVERAGE: False}
    assert not frame.loc[~frame["tested"], ["best", "as_best"]].to_numpy().any()
    assert by_benchmark["low"].count().to_dict() == {"t_one": 0, "t_two": 2, AVERAGE: 0}


def test_a_score_that_its_questions_contradict_is_not_believed(tmp_path):
    record, scores = {"t": {"acc,none": {"from": "questions", "scale": 1}}}, {"t": {"acc,none": 0.9}}
    runs = [make_run(tmp_path, m, {"t": [1.0, 0.0]}, scores=scores, noise=record) for m in ("none", "x")]
    reason = "its questions give 0.5 and not its score 0.9: run it again with force=true"
    assert summary(results(*runs))[1] == [f"untested: t, since {reason}"]


def test_a_run_gives_the_reason_why_it_is_untested(tmp_path):
    record = {"t": {"acc,none": {"from": None, "reason": "its aggregation needs a judge"}}}
    runs = [make_run(tmp_path, m, {"t": [1.0, 0.0]}, noise=record) for m in ("none", "x")]
    assert summary(results(*runs))[1] == ["untested: t, since its aggregation needs a judge"]


def test_a_baseline_that_scores_nothing_is_named(tmp_path):
    runs = results(make_run(tmp_path, each={"t": [0.0] * 10}), make_run(tmp_path, "x", {"t": [1.0] + [0.0] * 9}))
    frame, notes = summary(runs)
    assert notes == ["untested: t, since the unpruned model scores 0"]
    assert frame["low"].isna().all()


def test_percentages_of_means_are_known(tmp_path):
    (run,) = results(make_run(tmp_path, each={"t": [1.0, 0.0, 1.0, 1.0]}, scores={"t": {"acc,none": 75.0}}))
    found = influence(run, "t")
    assert (found.score, found.values.tolist(), found.questions) == (75, [6.25, -18.75, 6.25, 6.25], 4)


def test_sums_of_metrics_are_counted_term_by_term(tmp_path):
    columns = {"a,none": [1.0, None, 0.0], "b,none": [None, 1.0, None]}
    folder = make_run(tmp_path, each={"t_one": columns}, scores={"t_one": {"a,none": 0.5, "b,none": 1.0}})
    folder.show({"t_one": "a,none + b,none"})
    (run,) = results(folder)
    found = influence(run, "t_one")
    assert dict(zip(found.clusters, found.values, strict=True)) == {"t_one/0": 0.25, "t_one/2": -0.25, "t_one/1": 0}
    assert found.score == 1.5
    assert questions([run])[run.hash].tolist() == [1, 1, 0]


def test_a_part_of_the_pictures_is_scored_alone(tmp_path):
    """As if there were no others: the even ones are all right in one run, the odd ones all wrong."""
    values = [1.0, 0.0] * 20
    unpruned, run = results(
        make_run(tmp_path, each=asked([1.0] * 40, range(40))), make_run(tmp_path, "half", asked(values, range(40)))
    )
    for rest, share in ((0, 100.0), (1, 0.0)):
        found = noise([unpruned, run], unpruned, lambda picture, rest=rest: int(picture) % 2 == rest)
        assert found.shares[AVERAGE].values[found.place(run.hash)] == share


@pytest.mark.parametrize(
    ("found", "expected"),
    [(True, 1.0), (0.5, 0.5), ({"score": 1}, 1.0), ({"pred": "a ", "answer": "A"}, 1.0), ("text", None), ({}, None)],
)
def test_what_a_question_adds(found, expected):
    assert number(found) == expected


@pytest.mark.parametrize(
    ("task", "metric", "score", "most"),
    [
        ("pope", "pope_f1_score,none", 0.8, 1),
        ("mmbench_en_dev_static", "gpt_eval_score,none", 80.5, 100),
        ("mme", "mme_perception_score,none", 1500, 2000),
        ("mme", "mme_cognition_score,none", 300, math.inf),
        ("coco_cap", "coco_CIDEr,none", 0.9, math.inf),
        ("unlisted", "points,none", 17, math.inf),
    ],
)
def test_what_a_metric_can_reach(task, metric, score, most):
    assert greatest(task, metric, score) == most
