"""Runs that differ in their seed alone are one row."""

import numpy as np
import pytest
from run_folders import coins, make_run

from harness.results.result import Result, pool_seeds
from harness.results.stats import AVERAGE
from harness.results.summary import summary


def results(*folders):
    return [Result.of(folder) for folder in folders]


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path):
    base = coins(0, 0.9)
    seeds = [{t: v * coins(s, 0.7)[t] for t, v in base.items()} for s in (1, 2, 3)]
    runs = [make_run(tmp_path, each=base), *(make_run(tmp_path, "random", v, seed=i) for i, v in enumerate(seeds))]
    unpruned, pooled = pool_seeds(results(runs[0], *reversed(runs[1:])))
    assert [run.about["identity"]["seed"] for run in pooled.seeds] == [0, 1, 2]
    assert pooled.hash == Result.of(runs[1]).hash
    assert pooled.score("t_one") == pytest.approx(np.mean([np.mean(seed["t_one"]) for seed in seeds]))
    frame, notes = summary([unpruned, pooled])
    cell = frame.set_index(["hash", "benchmark"]).loc[pooled.hash, "t_one"]
    lost = [((base["t_one"] == 1) & (seed["t_one"] == 0)).sum() for seed in seeds]
    assert cell["lost"] == pytest.approx(np.mean(lost))
    averages = [np.mean([100 * seed[t].mean() / base[t].mean() for t in base]) for seed in seeds]
    whole = frame.set_index(["hash", "benchmark"]).loc[pooled.hash, AVERAGE]
    assert (whole["seeds"], whole["seed_sd"]) == (3, pytest.approx(np.std(averages, ddof=1)))
    assert notes[0].startswith("averages of random are means over seeds (keep=0.25: 3 seeds, standard deviation ")


def test_a_deterministic_method_counts_once(tmp_path):
    runs = [
        make_run(tmp_path, each={"t": [1.0] * 4}),
        *(make_run(tmp_path, "x", {"t": [1.0, 0, 1, 1]}, seed=s) for s in (0, 1)),
    ]
    _, only = pool_seeds(results(*runs))
    assert only.seeds == ()


def test_seeds_of_other_parameters_stay_apart(tmp_path):
    runs = [make_run(tmp_path, "x", {"t": [1.0, lam]}, seed=s, lam=lam) for s, lam in ((0, 0.5), (1, 0.7))]
    assert len(pool_seeds(results(*runs))) == 2
