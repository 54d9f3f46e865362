"""Statistics agree with independent references, and with the truth on data whose truth is known."""

import itertools
import math
from math import comb

import numpy as np
import pytest
from run_folders import coins, make_run
from scipy import stats as reference
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from harness.results.frames import questions
from harness.results.influence import Influence
from harness.results.result import Result
from harness.results.stats import (
    ALPHA,
    AVERAGE,
    OWN_ANSWER,
    Estimate,
    combine,
    flips,
    holm,
    mcnemar_p,
    noise,
)
from harness.results.summary import summary


def results(*folders):
    return [Result.of(folder) for folder in folders]


def trio(root, seed=0):
    """The unpruned model, and two methods that err on some of its questions."""
    base = coins(seed, 0.9)
    good, bad = ({t: v * coins(seed + s, share)[t] for t, v in base.items()} for s, share in ((1, 0.95), (2, 0.6)))
    return results(make_run(root, each=base), make_run(root, "good", good), make_run(root, "bad", bad))


def alike(rng, pictures, each, share, correlation):
    """Right and wrong answers [pictures * each] with a correlation of the latent numbers within a picture."""
    latent = math.sqrt(correlation) * rng.standard_normal((pictures, 1))
    latent = latent + math.sqrt(1 - correlation) * rng.standard_normal((pictures, each))
    return (latent < reference.norm.ppf(share)).astype(float).ravel()


# One score.


def test_the_error_of_a_mean_over_independent_questions_is_the_closed_form():
    values = np.random.default_rng(0).random(50) * 3 + 2  # no score of right and wrong answers
    found = combine({"t": [Influence.of_questions(values, [f"{i}" for i in range(50)], 100)]}, ["a"], None, {})
    assert found.scores["t"].errors[0] == pytest.approx(100 * values.std(ddof=1) / math.sqrt(50))


def test_the_error_of_questions_that_share_pictures_is_that_of_drawn_pictures():
    rng = np.random.default_rng(0)
    values, names = alike(rng, 60, 10, 0.7, 0.4), np.repeat([f"{i}" for i in range(60)], 10)
    found = combine({"t": [Influence.of_questions(values, names)]}, ["a"], None, {}).scores["t"]
    means = values.reshape(60, 10).mean(axis=1)
    drawn = means[rng.integers(0, 60, (20000, 60))].mean(axis=1)
    assert found.errors[0] == pytest.approx(drawn.std(), rel=0.03)
    assert found.errors[0] > 1.5 * values.std() / math.sqrt(600)  # what independent questions would give


def test_influences_are_what_leaving_a_picture_out_does():
    rng = np.random.default_rng(1)
    values, names = rng.random(40), rng.integers(0, 9, 40).astype(str)
    one = Influence.of_questions(values, names.tolist())
    assert one.values.sum() == pytest.approx(0)
    for cluster, value in zip(one.clusters, one.values, strict=True):
        share = (names == cluster).mean()
        without = values[names != cluster].mean()
        assert value == pytest.approx((one.score - without) * (1 - share))


@pytest.mark.parametrize(("right", "n"), [(10, 20), (19, 20), (20, 20), (0, 20), (239, 240)])
def test_the_interval_of_a_share_is_wilson_s(right, n):
    values = np.array([1.0] * right + [0.0] * (n - right))
    found = combine({"t": [Influence.of_questions(values, [f"{i:03d}" for i in range(n)])]}, ["a"], None, {})
    low, high = found.score_interval("t", "a")
    expected = proportion_confint(right, n, method="wilson")
    assert (low, high) == pytest.approx(expected, abs=0.03 if n == 20 else 0.002)  # Student's quantile is larger
    assert 0 <= low < high <= 1


def test_the_error_of_a_percentage_and_of_the_average_is_that_of_a_loop_over_resamples(tmp_path):
    """Brute force: draw questions one by one, average, divide by the baseline, average over benchmarks."""
    base, _, bad = trio(tmp_path)
    rng, drawn = np.random.default_rng(1), []
    for _ in range(4000):
        shares = []
        for task, n in (("t_one", 40), ("t_two", 60)):
            places = rng.integers(0, n, n)
            mine, theirs = (np.array(run.per_question[task]["acc,none"])[places].mean() for run in (bad, base))
            shares.append(100 * mine / theirs)
        drawn.append([*shares, np.mean(shares)])
    found = noise([base, bad], base)
    own = {"t_one": 40, "t_two": 60}
    for place, name in enumerate(["t_one", "t_two", AVERAGE]):
        squares = [
            OWN_ANSWER / n**2 * (1 + (found.shares[t].values[1] / 100) ** 2) * (100 / base.score(t)) ** 2
            for t, n in own.items()
        ]
        extra = sum(squares) / 4 if name == AVERAGE else squares[place]
        error = found.shares[name].errors[found.place(bad.hash)]
        assert math.sqrt(error**2 - extra) == pytest.approx(np.std([row[place] for row in drawn]), rel=0.06)


def test_a_copy_of_the_baseline_is_at_100_percent_but_not_for_certain(tmp_path):
    base = coins(0, 0.7)
    unpruned, copy = results(make_run(tmp_path, each=base), make_run(tmp_path, "copy", base))
    share = noise([unpruned, copy], unpruned).shares["t_one"]
    low, high = share.interval(1)
    assert share.values[1] == pytest.approx(100)
    assert 90 < low < 99 < 101 < high < 110
    assert share.interval(0) == (100, 100)  # the baseline in percent of itself


@pytest.mark.parametrize("each", [1, 6])
def test_95_percent_intervals_contain_the_truth_95_times_in_100(each):
    """Worlds with a known average; the questions of a picture are alike. More cases: scripts/coverage.py."""
    hits, worlds = 0, 200
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        influences = {}
        for task, (pictures, share, kept) in {"t": (150, 0.8, 0.75), "u": (200, 0.9, 0.9)}.items():
            names = [f"{task}{i:04d}" for i in range(pictures) for _ in range(each)]
            base = alike(rng, pictures, each, share, 0.4)
            mine = base * alike(rng, pictures, each, kept, 0.4)
            influences[task] = [Influence.of_questions(values, names) for values in (base, mine)]
        low, high = combine(influences, ["base", "mine"], 0, {}).shares[AVERAGE].interval(1)
        hits += low <= 100 * (0.75 + 0.9) / 2 <= high
    assert 0.91 <= hits / worlds <= 0.985


def test_a_picture_that_two_tasks_show_is_one_source_of_error():
    values = np.random.default_rng(0).random(30) + 5
    names = [f"{i}" for i in range(30)]
    base = [Influence.of_questions(np.full(30, 5.0), names), Influence.of_questions(values, names)]
    other = [Influence.of_questions(numbers, [f"u{name}" for name in names]) for numbers in (np.full(30, 5.0), values)]
    shared, apart = (combine({"t": base, "u": second}, ["a", "b"], 0, {}).shares for second in (base, other))
    assert shared[AVERAGE].errors[1] == pytest.approx(shared["t"].errors[1])
    assert apart[AVERAGE].errors[1] == pytest.approx(apart["t"].errors[1] / math.sqrt(2))


# Two runs.


def test_mcnemar_is_the_binomial_test_of_the_discordant():
    for b, c in itertools.product(range(6), repeat=2):
        n = b + c
        tail = sum(comb(n, i) for i in range(min(b, c) + 1)) / 2**n
        assert mcnemar_p(b, c) == pytest.approx(min(1.0, 2 * tail))
        assert mcnemar_p(b, c) == pytest.approx(min(1.0, mcnemar([[3, b], [c, 2]], exact=True).pvalue))


def test_holm_by_hand():
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)


def test_the_test_of_a_difference_is_student_s_of_paired_numbers():
    rng = np.random.default_rng(0)
    a, b = rng.random(200) * 5, rng.random(200) * 5 + 0.3
    names = [f"{i:03d}" for i in range(200)]
    found = combine({"t": [Influence.of_questions(v, names) for v in (a, b)]}, ["a", "b"], None, {}).scores["t"]
    low, high, p = found.difference(0, 1)
    expected = reference.ttest_rel(a, b)
    assert p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval()))


def test_the_test_is_of_the_number_that_is_shown_and_not_of_the_answers(tmp_path):
    """MME's score also counts pictures with two right answers: as many right answers may give a lower score."""
    spread, paired = [1.0, 0.0] * 40, [1.0, 1.0, 0.0, 0.0] * 20
    rows = {"both": paired, "one": spread}
    runs = []
    for name, values in {"none": [1.0] * 80, **rows}.items():
        pairs = np.array(values).reshape(40, 2)
        units = 50 * pairs.sum(axis=1) + 100 * (pairs.sum(axis=1) == 2)
        record = {"from": "units", "clusters": [f"{i:02d}" for i in range(40)]}
        record["influence"] = ((units - units.mean()) / 40).tolist()
        folder = make_run(
            tmp_path,
            name,
            {"t": values},
            scores={"t": {"acc,none": float(units.mean())}},
            noise={"t": {"acc,none": record}},
        )
        runs.append(Result.of(folder))
    cell = summary(runs)[0].set_index("hash").loc[runs[2].hash].iloc[0]
    assert mcnemar_p(20, 20) == 1
    assert cell["p_best"] < 0.01
    assert not cell["as_best"]


# Many runs.


def estimate(values, covariance, freedom=1e9):
    return Estimate(np.array(values, dtype=float), np.linalg.cholesky(np.array(covariance, dtype=float)).T, freedom)


def test_two_runs_are_compared_by_a_one_sided_test():
    found = estimate([1.0, 0.0], np.eye(2)).against_best()
    expected = reference.norm.sf([-1 / math.sqrt(2), 1 / math.sqrt(2)])
    assert found == pytest.approx(expected, abs=0.003)


def test_many_runs_are_compared_by_the_largest_of_their_deficits():
    """The same by independent plain Monte Carlo, one run at a time."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    values, covariance = np.array([0.0, 1.0, 2.0, 2.1, -3.0]), root @ root.T
    found = estimate(values, covariance).against_best()
    drawn = rng.multivariate_normal(np.zeros(5), covariance, 200_000)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        errors = [math.sqrt(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]) for j in others]
        seen = max((values[j] - values[i]) / e for j, e in zip(others, errors, strict=True))
        largest = np.max([(drawn[:, j] - drawn[:, i]) / e for j, e in zip(others, errors, strict=True)], axis=0)
        assert found[i] == pytest.approx((largest >= seen).mean(), abs=0.006)


def test_no_seed_decides_a_mark():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((20, 40)) / 6
    found = estimate(rng.normal(0, 1.5, 20), root @ root.T)
    p = np.array([found.against_best(seed) for seed in range(8)])
    close = (p.mean(axis=0) > 0.03) & (p.mean(axis=0) < 0.09)
    assert close.any()
    assert np.ptp(p[:, close], axis=0).max() < 0.001


def test_ties_share_their_mark(tmp_path):
    base = coins(0, 0.9, {"t_one": 200})
    low = {"t_one": base["t_one"] * coins(1, 0.8, {"t_one": 200})["t_one"]}
    swapped = {"t_one": low["t_one"].copy()}
    swapped["t_one"][[np.flatnonzero(low["t_one"])[0], np.flatnonzero(1 - low["t_one"])[0]]] = [0.0, 1.0]
    runs = results(*(make_run(tmp_path, n, v) for n, v in (("none", base), ("x", low), ("y", swapped), ("z", low))))
    frame, _ = summary(runs)
    rows = frame[(frame["budget"] != "") & (frame["benchmark"] == "t_one")]
    assert rows["best"].all()


def test_runs_that_differ_for_certain_are_told_apart():
    found = Estimate(np.array([1.0, 0.0]), np.zeros((3, 2)), 10)
    assert found.against_best().tolist() == [1, 0]
    assert found.difference(0, 1) == (1, 1, 0)


def test_equal_methods_are_rarely_called_different():
    """Of six methods of one ability any may be the best: each loses its mark in at most a twentieth of the worlds."""
    lost, worlds = 0, 40
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        names = [f"{i:03d}" for i in range(300)]
        base = (rng.random(300) < 0.9) * 1.0
        each = [base, *(base * (rng.random(300) < 0.85) for _ in range(6))]
        influences = {"t": [Influence.of_questions(values, names) for values in each]}
        found = combine(influences, [f"{i}" for i in range(7)], 0, {}).shares["t"]
        lost += int((found.of(range(1, 7)).against_best() < ALPHA).sum())
    assert lost / 6 / worlds < 0.09


def test_a_row_that_is_ahead_leaves_fewer_marks_than_holm_over_all_pairs():
    """Of twenty rows with one ahead by four standard errors."""
    marks, of_holm = [], []
    for seed in range(8):
        values = np.array([4.0] + [0.0] * 19) + np.random.default_rng(seed).standard_normal(20)
        marks.append(int((estimate(values, np.eye(20)).against_best() >= ALPHA).sum()))
        pairs = list(itertools.combinations(range(20), 2))
        single = [2 * reference.norm.sf(abs(values[a] - values[b]) / math.sqrt(2)) for a, b in pairs]
        p = dict(zip(pairs, holm(single), strict=True))
        best = int(values.argmax())
        of_holm.append(1 + sum(p[min(i, best), max(i, best)] >= ALPHA for i in range(20) if i != best))
    assert np.mean(marks) < 0.75 * np.mean(of_holm)


def test_the_luck_of_the_best_is_what_it_exceeds_its_truth_by():
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((100_000, 10)).max(axis=1).mean()
    assert estimate([0.0] * 10, np.eye(10)).luck() == pytest.approx(drawn, abs=0.02)
    assert estimate([50.0] + [0.0] * 9, np.eye(10)).luck() == pytest.approx(0, abs=0.01)


def test_a_worse_method_loses_its_mark_and_an_equal_one_keeps_it(tmp_path):
    base = coins(0, 0.95, {"t_one": 300})
    good = {"t_one": base["t_one"] * coins(1, 0.97, {"t_one": 300})["t_one"]}
    near = {"t_one": base["t_one"] * coins(4, 0.96, {"t_one": 300})["t_one"]}
    bad = {"t_one": base["t_one"] * coins(3, 0.6, {"t_one": 300})["t_one"]}
    runs = [make_run(tmp_path, m, e) for m, e in (("none", base), ("good", good), ("near", near), ("bad", bad))]
    frame, notes = summary(results(*runs))
    (luck,) = notes
    assert luck.startswith("the best average was selected on these questions and is expected to be too high, by 0.")
    row = frame[frame["benchmark"] == "t_one"].set_index("budget").loc["keep=0.25"]
    assert row["best"].tolist() == [True, False, False]
    assert row["as_best"].tolist() == [False, True, False]
    assert row["p_best"].iloc[2] < 1e-6 < ALPHA < row["p_best"].iloc[1]
    assert row["tested"].all()


def test_standard_errors_and_flips(tmp_path):
    base, _, bad = trio(tmp_path)
    frame, _ = summary([base, bad])
    cell = frame[(frame["hash"] == bad.hash) & (frame["benchmark"] == "t_one")].iloc[0]
    values, unpruned = (np.array(run.per_question["t_one"]["acc,none"]) for run in (bad, base))
    assert cell["se"] == pytest.approx(math.sqrt(values.var(ddof=1) / 40 + OWN_ANSWER / 40**2))
    assert (cell["lost"], cell["gained"]) == (((unpruned == 1) & (values == 0)).sum(), 0)
    whole = frame[(frame["hash"] == bad.hash) & (frame["benchmark"] == AVERAGE)].iloc[0]
    assert whole["lost"] == flips(*(questions([base, bad])[run.hash] for run in (bad, base)))[0]
    assert whole["low"] < whole["relative"] < whole["high"]
