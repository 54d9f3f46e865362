"""harness.compare: two runs on the same questions, against counts by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fork_server import completed
from run_folders import make_run
from scipy import stats

from harness import compare
from harness.core import command
from harness.core.errors import UserError
from harness.results.result import Result
from harness.results.stats import OWN_ANSWER

BASE = {"t_one": 2 * [1.0, 1.0, 1.0, 1.0, 0.0, 1.0], "t_two": 3 * [0.5, 1.0, 0.25, 1.0]}
LESS = {"t_one": 2 * [1.0, 0.0, 0.0, 1.0, 1.0, 0.0], "t_two": 3 * [0.5, 0.5, 0.25, 1.0]}


@pytest.fixture
def pair(tmp_path):
    said = {"t_one": 2 * list("abcdef"), "t_two": 3 * list("abcd")}
    other = {"t_one": 2 * list("abCxyz"), "t_two": 3 * list("abcd")}
    a = make_run(tmp_path, "none", BASE, said=said)
    return Result.of(a), Result.of(make_run(tmp_path, "x", LESS, said=other))


def test_every_column_by_hand(pair):
    a, b = pair
    found = compare.compare(a, b, a)[0].set_index("task")
    one, two, average = (found.loc[name] for name in ("t_one", "t_two", "avg"))
    assert (one["a"], one["b"], one["difference"]) == pytest.approx((5 / 6, 3 / 6, 2 / 6))
    assert (one["a_only"], one["b_only"]) == (6, 2)
    assert one["mcnemar"] == pytest.approx(2 * (1 + 8 + 28) / 256)  # at most 2 of 8 discordant, either way
    assert math.isnan(two["mcnemar"])
    differences = np.subtract(BASE["t_one"], LESS["t_one"])
    error = math.sqrt(differences.var(ddof=1) / 12 + 2 * OWN_ANSWER / 12**2)
    assert one["p"] == pytest.approx(2 * stats.t.sf(2 / 6 / error, 11))
    assert one["agreement"] == pytest.approx(50)
    assert (two["a_only"], two["b_only"], two["agreement"]) == (3, 0, 100)
    assert average["a"] == 100
    assert average["b"] == pytest.approx((100 * 3 / 5 + 100 * 2.25 / 2.75) / 2)
    assert average["low"] <= average["difference"] <= average["high"]
    small, large = sorted([one["p"], two["p"]])
    assert sorted([one["p_holm"], two["p_holm"]]) == pytest.approx([2 * small, max(2 * small, large)])


def test_failed_questions_are_noted(tmp_path):
    a, b = (Result.of(make_run(tmp_path, method, BASE, failed={"t_one": n})) for method, n in (("x", 0), ("y", 2)))
    notes = compare._notes(*compare.compare(a, b, None), None, a, b)
    assert notes[0] == "t_one: 2 of 12 questions failed, scored as empty answers, in y keep=0.25"
    assert notes[1].startswith("p tests A - B = 0 and treats pictures as independent")


def test_differences_stay_within_what_the_scores_can_reach(tmp_path):
    """Of ten questions, one run answers all and the other none: one score cannot differ by more than all of them."""
    right, wrong = {"t_one": [1.0] * 10}, {"t_one": [0.0, 1.0] * 5}
    a, b = (Result.of(make_run(tmp_path, method, each)) for method, each in (("none", right), ("x", wrong)))
    for c in (b, Result.of(make_run(tmp_path, "y", {"t_one": [1.0] + [0.0] * 9}))):
        found = compare.compare(a, c, a)[0].set_index("task")
        assert found.loc["t_one", "high"] <= 1
        assert found.loc["avg", "high"] <= 100
    assert (found["high"] == [1, 100]).all()


def test_a_trial_of_two_questions_is_untested_and_named(tmp_path):
    few = {"t_one": [1.0, 1.0]}, {"t_one": [0.0, 0.0]}
    a, b = (Result.of(make_run(tmp_path, m, v, limit=2)) for m, v in zip(("none", "x"), few, strict=True))
    found, untested = compare.compare(a, b, a)
    assert found[["low", "high", "p"]].isna().all(axis=None)
    assert untested == {"t_one": "it has 2 independent pictures, and a test needs at least 10"}
    notes = compare._notes(found, untested, a, a, b)
    assert notes[0].startswith("limit=2 asks the first questions of each task")


def test_a_scorer_that_one_of_two_methods_has_is_no_difference_of_settings(tmp_path):
    with_scorer, without, other = (
        Result.of(make_run(tmp_path, method, BASE, scorer=scorer))
        for method, scorer in (("x", "4f10"), ("y", None), ("z", "93aa"))
    )
    assert compare._settings(with_scorer, without) == {}
    assert compare._settings(with_scorer, other) == {"scorer": ["4f10", "93aa"]}


def test_a_pattern_names_a_run_of_an_archive():
    runs = Path(compare.__file__).parents[1] / "results" / "pocket" / "runs" / "pocket" / "pocket"
    assert Result.of(compare._archived(runs / "idpruner-0.25*")).title == "idpruner keep=0.25"
    with pytest.raises(UserError, match=r"matches 2 runs .*more of its name\): it has pocket/pocket/idpruner-0"):
        compare._archived(runs / "idpruner*")
    with pytest.raises(UserError, match=r"matches 0 runs .* \(no such run\): it has pocket/pocket/avg_pool-0\.1"):
        compare._archived(runs / "nothing*")


def test_a_run_against_its_like_has_no_difference(tmp_path):
    a, b = (Result.of(make_run(tmp_path, method, BASE)) for method in ("x", "y"))
    found, untested = compare.compare(a, b, None)
    assert untested == {}
    assert set(found["difference"]) == {0}
    assert set(found["p"]) == {1}
    assert (found["low"] < 0).all()
    assert (found["high"] == -found["low"]).all()
    assert "avg" not in set(found["task"])  # no unpruned run to be relative to


def test_the_unpruned_run_beside_is_found(tmp_path):
    runs = [Result.of(make_run(tmp_path, method, BASE)) for method in ("none", "x", "y")]
    assert compare.baseline_of(*runs[1:]).hash == runs[0].hash
    assert compare.baseline_of(runs[0], runs[2]).hash == runs[0].hash
    other = Result.of(make_run(tmp_path, "z", BASE, model="other"))
    assert compare.baseline_of(runs[1], other) is None


def test_folders_are_given_by_place_or_by_name(tmp_path):
    (tmp_path / "a=b").mkdir()
    overrides = compare.prepare(["one/x", str(tmp_path / "a=b"), "csv=c"])
    cfg = command.compose("compare", overrides)
    assert (cfg.a, cfg.b, cfg.csv) == ("one/x", str(tmp_path / "a=b"), "c")
    cfg = command.compose("compare", compare.prepare(["a=one", "b=two"]))
    assert (cfg.a, cfg.b) == ("one", "two")
    with pytest.raises(UserError, match="two run folders are compared, got 3"):
        compare.prepare(["one", "two", "three"])


@pytest.mark.usefixtures("fork_server")
def test_the_command(pair, tmp_path):
    a, b = pair
    done = completed(tmp_path, "harness.compare", str(a.folder), str(b.folder), "csv=found.csv")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "settings: the same" in lines
    assert lines[5].split()[:5] == ["t_one", "12", "0.8333", "0.5000", "+0.3333"]
    report = json.loads(lines[-1])
    assert report["tasks"]["t_one"]["a_only"] == 6
    assert report["settings"] == {}
    written = pd.read_csv(tmp_path / "found.csv", index_col="task")
    assert written["difference"].to_dict() == pytest.approx({t: r["difference"] for t, r in report["tasks"].items()})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "a is null: pass two run folders"),
        (["here"], "b is null: pass two run folders"),
        (["here", "./here"], "a and b are one folder"),
        (["here", "there"], "here is no finished run"),
        (["here", "there", "csv=no/file.csv"], "cannot write csv=no/file.csv: there is no folder no"),
    ],
)
def test_a_mistake_is_one_line(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        compare.main(command.compose("compare", compare.prepare(args)))
