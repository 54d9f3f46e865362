"""Statistics agree with independent references, and with the truth on data whose truth is known."""

import itertools
import math
from math import comb

import numpy as np
import pandas as pd
import pytest
from run_folders import coins, make_run
from statsmodels.stats.contingency_tables import mcnemar

from harness.core.errors import UserError
from harness.results.aggregation import number, strata
from harness.results.frames import answers, questions
from harness.results.result import Result, merge_task_runs
from harness.results.stats import (
    AVERAGE,
    agreement,
    bootstrap_p,
    draw,
    flips,
    holm,
    interval,
    mcnemar_p,
    pairwise_p,
    task_strata,
)
from harness.results.summary import ALPHA, summary


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def results(*folders):
    return [Result.of(folder) for folder in folders]


def trio(root, seed=0):
    """The unpruned model, and two methods that err on some of its questions."""
    base = coins(seed, 0.9)
    good, bad = ({t: v * coins(seed + s, share)[t] for t, v in base.items()} for s, share in ((1, 0.95), (2, 0.6)))
    return results(make_run(root, each=base), make_run(root, "good", good), make_run(root, "bad", bad))


def test_mcnemar_is_the_binomial_test_of_the_discordant():
    for b, c in itertools.product(range(6), repeat=2):
        a = pd.Series([1.0] * b + [0.0] * c + [1.0] * 3 + [0.0] * 2)
        other = pd.Series([0.0] * b + [1.0] * c + [1.0] * 3 + [0.0] * 2)
        n = b + c
        tail = sum(comb(n, i) for i in range(min(b, c) + 1)) / 2**n
        assert mcnemar_p(b, c) == pytest.approx(min(1.0, 2 * tail))
        table = [[3, b], [c, 2]]
        assert mcnemar_p(b, c) == pytest.approx(min(1.0, mcnemar(table, exact=True).pvalue))
        frame = pd.DataFrame({"a": a, "other": other})
        p, test = pairwise_p(frame, np.zeros((2, 5)), [0, 0])
        assert (p[0, 1], p[1, 0], test) == (mcnemar_p(b, c), mcnemar_p(b, c), "mcnemar")


def test_holm_by_hand():
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)


def test_the_mean_of_the_draws_and_their_spread_are_those_of_the_closed_form(tmp_path):
    base, good, _ = trio(tmp_path)
    draws = draw([base, good], base, resamples=20000)
    for task, n in (("t_one", 40), ("t_two", 60)):
        values = np.array(good.per_question[task]["acc,none"])
        mine = draws.scores[draws.tasks.index(task), draws.runs.index(good.hash)]
        assert mine.mean() == pytest.approx(values.mean(), abs=0.003)
        assert mine.std() == pytest.approx(math.sqrt(values.var() / n), rel=0.03)


def test_a_part_of_the_questions_is_drawn_alone(tmp_path):
    """As if there were no others: the even ones are all right in one run, the odd ones all wrong."""
    base, half = {t: v * 0 + 1 for t, v in coins(0, 0.5).items()}, {}
    for task, values in base.items():
        half[task] = values.copy()
        half[task][1::2] = 0
    unpruned, run = results(make_run(tmp_path, each=base), make_run(tmp_path, "half", half))
    for start, share in ((0, 100.0), (1, 0.0)):
        found = draw([unpruned, run], unpruned, 50, units=slice(start, None, 2))
        assert found.average(run.hash) == share
        assert set(found.of(AVERAGE, run.hash)) == {share}


def test_resampling_is_joint_and_seeded(tmp_path):
    """A copy of the baseline's answers stays at exactly 100 %: both are drawn on the same questions."""
    base = coins(0, 0.7)
    unpruned, copy = results(make_run(tmp_path, each=base), make_run(tmp_path, "copy", base))
    first, again = (draw([unpruned, copy], unpruned, 300, seed=7) for _ in range(2))
    assert np.abs(first.of(AVERAGE, copy.hash) - 100).max() < 1e-9
    assert (first.scores == again.scores).all()
    assert (first.scores != draw([unpruned, copy], unpruned, 300, seed=8).scores).any()


def test_the_interval_is_that_of_a_loop_over_resamples(tmp_path):
    """Brute force: draw questions one by one, average, divide by the baseline, average over benchmarks."""
    base, _, bad = trio(tmp_path)
    rng, found = np.random.default_rng(1), []
    for _ in range(3000):
        shares = []
        for task, n in (("t_one", 40), ("t_two", 60)):
            places = rng.integers(0, n, n)
            mine, theirs = (np.array(run.per_question[task]["acc,none"])[places].mean() for run in (bad, base))
            shares.append(100 * mine / theirs)
        found.append(np.mean(shares))
    low, high = interval(draw([base, bad], base, resamples=3000).of(AVERAGE, bad.hash))
    assert (low, high) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), abs=0.8)


def test_95_percent_intervals_contain_the_truth_95_times_in_100(tmp_path):
    """Worlds with a known relative average, 0.8 * 0.75 / 0.8 on one benchmark and 0.9 * 0.9 / 0.9 on the other."""
    truth, hits, worlds = 100 * (0.75 + 0.9) / 2, 0, 100
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        base = {"t_one": (rng.random(150) < 0.8) * 1.0, "t_two": (rng.random(200) < 0.9) * 1.0}
        mine = {t: base[t] * (rng.random(len(base[t])) < share) for t, share in (("t_one", 0.75), ("t_two", 0.9))}
        place = tmp_path / str(seed)
        unpruned, run = results(make_run(place, each=base), make_run(place, "x", mine))
        low, high = interval(draw([unpruned, run], unpruned, resamples=300).of(AVERAGE, run.hash))
        hits += low <= truth <= high
    assert 0.89 <= hits / worlds <= 0.99


def test_equal_methods_are_rarely_called_different(tmp_path):
    """Six methods of one ability: any of them is told from the best in at most about one world of twenty."""
    alarms, worlds = 0, 30
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        base = {"t_one": (rng.random(200) < 0.9) * 1.0}
        place = tmp_path / str(seed)
        folders = [make_run(place, each=base)]
        folders += [make_run(place, f"m{i}", {"t_one": base["t_one"] * (rng.random(200) < 0.8)}) for i in range(6)]
        frame, _ = summary(results(*folders), resamples=100)
        tests = frame[(frame["budget"] != "") & ~frame["best"]]
        alarms += bool((~tests["as_best"]).any())
    assert alarms <= 4


def test_a_worse_method_is_told_from_the_best_and_an_equal_one_is_not(tmp_path):
    base = coins(0, 0.95, {"t_one": 300})
    good = {"t_one": base["t_one"] * coins(1, 0.97, {"t_one": 300})["t_one"]}
    near = {"t_one": base["t_one"] * coins(2, 0.96, {"t_one": 300})["t_one"]}
    bad = {"t_one": base["t_one"] * coins(3, 0.6, {"t_one": 300})["t_one"]}
    runs = [make_run(tmp_path, m, e) for m, e in (("none", base), ("good", good), ("near", near), ("bad", bad))]
    frame, notes = summary(results(*runs))
    assert notes == []
    row = frame[frame["benchmark"] == "t_one"].set_index("budget").loc["keep=0.25"]
    assert row["best"].tolist() == [True, False, False]
    assert row["as_best"].tolist() == [False, True, False]
    assert row["p_best"].iloc[2] < 1e-6 < ALPHA < row["p_best"].iloc[1]


def test_holm_is_over_all_pairs_of_a_block(tmp_path):
    base, good, bad = trio(tmp_path)
    third = Result.of(make_run(tmp_path, "third", coins(9, 0.7)))
    frame, _ = summary([base, good, bad, third])
    each = questions([base, good, bad, third])
    names = [good.hash, bad.hash, third.hash]
    pairs = list(itertools.combinations(names, 2))
    two = each.loc["t_two"]
    p = [mcnemar_p(((two[a] > two[b]).sum()), ((two[a] < two[b]).sum())) for a, b in pairs]
    corrected = dict(zip(pairs, holm(p), strict=True))
    cell = frame[(frame["benchmark"] == "t_two") & (frame["hash"] == bad.hash)].iloc[0]
    assert cell["p_best"] == pytest.approx(corrected[good.hash, bad.hash])


def test_standard_errors_and_flips(tmp_path):
    base, _, bad = trio(tmp_path)
    frame, _ = summary([base, bad])
    cell = frame[(frame["hash"] == bad.hash) & (frame["benchmark"] == "t_one")].iloc[0]
    values, unpruned = (np.array(run.per_question["t_one"]["acc,none"]) for run in (bad, base))
    assert cell["se"] == pytest.approx(values.std(ddof=1) / math.sqrt(40))
    assert (cell["lost"], cell["gained"]) == (((unpruned == 1) & (values == 0)).sum(), 0)
    whole = frame[(frame["hash"] == bad.hash) & (frame["benchmark"] == AVERAGE)].iloc[0]
    assert whole["lost"] == flips(*(questions([base, bad])[run.hash] for run in (bad, base)))[0]
    assert whole["low"] < whole["relative"] < whole["high"]


def test_scores_between_right_and_wrong_use_the_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.random(200), rng.random(200)
    drawn = np.array([(a - b)[rng.integers(0, 200, 200)].mean() for _ in range(2000)])
    z = (a - b).mean() / math.sqrt((a - b).var() / 200)
    assert bootstrap_p(drawn, (a - b).mean()) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.03)
    assert bootstrap_p(np.zeros(10), 0.0) == 1.0
    assert math.isnan(bootstrap_p(np.array([np.nan, 1.0]), 0.0))


def test_agreement_is_of_words_and_not_of_blanks_or_case(tmp_path):
    said = {"t_one": ["yes", "No", "b"]}, {"t_one": [" yes", "no.", "B"]}
    runs = [make_run(tmp_path, m, {"t_one": [1.0, 1.0, 0.0]}, said=s) for m, s in zip(("none", "x"), said, strict=True)]
    found = answers(results(*runs))
    assert agreement(*(found[name] for name in found)) == pytest.approx(100 * 2 / 3)


def test_a_baseline_that_may_score_nothing_has_no_interval(tmp_path):
    base, mine = {"t_one": [1.0] + [0.0] * 9}, {"t_one": [1.0, 1.0] + [0.0] * 8}
    runs = results(make_run(tmp_path, each=base), make_run(tmp_path, "x", mine))
    assert all(map(math.isnan, interval(draw(runs, runs[0]).of("t_one", runs[1].hash))))


# What lmms-eval aggregates is not always a mean of numbers.


def mme(rng, pictures=20):
    """Records as `mme_process_results` gives them, two questions a picture."""
    return [
        {"question_id": f"{category}/{i}", "category": category, "score": float(rng.random() < 0.7)}
        for category in ("existence", "color")
        for i in range(pictures)
        for _ in range(2)
    ]


def mmstar(rng):
    sizes = {"coarse": 13, "math": 29}
    return [{"l2_category": c, "score": float(rng.random() < 0.5)} for c, n in sizes.items() for _ in range(n)]


def seedbench(rng):
    return [{"pred": str(rng.choice(["A", "B"])), "answer": "A", "question_id": i} for i in range(30)]


@pytest.mark.parametrize(
    ("records", "module", "function"),
    [
        (mme, "mme", "mme_aggregate_results"),
        (mmstar, "mmstar", "mmstar_aggregate_results"),
        (seedbench, "seedbench", "seed_aggregation_result"),
    ],
)
def test_records_are_weighed_as_lmms_eval_weighs_them(records, module, function):
    utils = pytest.importorskip(f"lmms_eval.tasks.{module}.utils")
    runs = [records(np.random.default_rng(seed)) for seed in range(3)]
    scores = [float(getattr(utils, function)(run)) for run in runs]
    for found, score in zip(strata(runs, scores), scores, strict=True):
        assert sum(weight * values.mean() for weight, values in found) == pytest.approx(score)


def test_mme_is_drawn_by_picture():
    runs = [mme(np.random.default_rng(0))]
    utils = pytest.importorskip("lmms_eval.tasks.mme.utils")
    (found,) = strata(runs, [float(utils.mme_aggregate_results(runs[0]))])
    assert [(weight, len(values)) for weight, values in found] == [(1.0, 20), (1.0, 20)]
    assert set(np.concatenate([values for _, values in found])) <= {0.0, 50.0, 200.0}


def test_percentages_of_means_are_known():
    ((weight, values),) = strata([[1.0, 0.0, 1.0, 1.0]], [75.0])[0]
    assert (weight, values.tolist()) == (100.0, [1, 0, 1, 1])


def test_what_does_not_follow_from_its_questions_has_no_interval(tmp_path):
    scores = {"t_one": {"acc,none": 0.3}}
    runs = [make_run(tmp_path, m, {"t_one": [1.0, 0.0], "t_two": [1.0, 1.0]}, scores=scores) for m in ("none", "x")]
    frame, notes = summary(results(*runs))
    assert notes == ["no interval for t_one: its score is no weighted mean of the values of its questions"]
    assert frame.set_index(["hash", "benchmark"])["low"].isna().loc[:, AVERAGE].all()
    assert frame[frame["benchmark"] == "t_two"]["low"].notna().all()


def test_sums_of_metrics_are_drawn_term_by_term(tmp_path):
    columns = {"a,none": [1.0, None, 0.0], "b,none": [None, 1.0, None]}
    folder = make_run(tmp_path, each={"t_one": columns}, scores={"t_one": {"a,none": 0.5, "b,none": 1.0}})
    folder.show({"t_one": "a,none + b,none"})
    (run,) = results(folder)
    assert [(w, v.tolist()) for w, v in task_strata([run], "t_one")[0]] == [(1.0, [1, 0]), (1.0, [1])]
    assert questions([run])[run.hash].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("found", "expected"),
    [(True, 1.0), (0.5, 0.5), ({"score": 1}, 1.0), ({"pred": "a ", "answer": "A"}, 1.0), ("text", None), ({}, None)],
)
def test_what_a_question_adds(found, expected):
    assert number(found) == expected


# Only like is compared with like.


def test_other_questions_are_refused(tmp_path):
    long, short = results(make_run(tmp_path, each={"t": [1.0] * 5}), make_run(tmp_path, "x", {"t": [1.0] * 4}, limit=4))
    with pytest.raises(UserError, match=r"different questions of t \(5 and 4\)"):
        questions([long, short])


def test_other_data_is_refused(tmp_path):
    mine = make_run(tmp_path, each={"t": [1.0]})
    theirs = make_run(tmp_path, "x", {"t": [1.0]}, tasks={"names": ["t"], "limit": None, "files": "g"})
    with pytest.raises(UserError, match="answer other data"):
        questions(results(mine, theirs))


def test_another_copy_of_the_data_is_refused_joined_or_not(tmp_path):
    def run(method, task, copy):
        tasks = {"names": [task], "limit": None, "files": None, "data": {task: copy} if copy else {}}
        return make_run(tmp_path / f"{method}{task}{copy}", method, {task: [1.0]}, tasks=tasks)

    mine, same, other, hub = (
        run(*about) for about in (("x", "t", "1"), ("y", "t", "1"), ("z", "t", "2"), ("w", "t", ""))
    )
    assert len(questions(results(mine, same))) == 1
    for unlike in (other, hub):
        with pytest.raises(UserError, match=r"answer other data: data_root= gave them other copies for t$"):
            questions(results(mine, unlike))
    one, two = merge_task_runs(results(mine, run("x", "s", "1"), other, run("z", "s", "1")))
    with pytest.raises(UserError, match=r"other copies for t$"):
        questions([one, two])


def test_a_run_without_the_score_of_every_question_says_what_to_do(tmp_path):
    folder = make_run(tmp_path, each={"t": [1.0]})
    (folder.path / "scores.json").unlink()
    with pytest.raises(UserError, match=r"no scores.json.*force=true"):
        questions(results(folder))
    frame, notes = summary(results(folder))
    assert frame["score"].iloc[0] == 1.0
    assert "no scores.json" in notes[0]
