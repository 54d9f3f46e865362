"""The published tables come out of their raw scores again, and our runs stand beside them cell by cell."""

from pathlib import Path

import pandas as pd
import pytest
from run_folders import make_run

from harness import tables
from harness.results import paper
from harness.results.formats import markdown, sheet
from harness.results.result import Result, collect

FOLDER = Path(__file__).parents[2] / "results" / "paper"
RAW = pd.read_csv(FOLDER / paper.SCORES, dtype={"table": str, "budget": str, "group": str}).fillna(
    {"budget": "", "group": ""}
)
PUBLISHED = pd.read_csv(FOLDER / paper.AVERAGES, dtype={"table": str, "budget": str}).fillna({"budget": ""})
NUMBERS = ["1", "2", "3", "5", "6", "7"]
KEYS = ["budget", "group", "method", "lambda"]


def committed(number):
    return pd.read_csv(FOLDER / f"table{number}.csv", dtype={"budget": str}).fillna({"budget": "", "group": ""})


@pytest.mark.parametrize("number", NUMBERS)
def test_every_published_score_stands_in_its_cell(number):
    raw, table = RAW[RAW["table"] == number], committed(number)
    benchmarks = list(dict.fromkeys(raw["benchmark"]))
    assert list(table) == [*KEYS, *benchmarks, "avg"]
    cells = {
        (*(row[key] for key in KEYS[:3]), f"{row['lambda']:g}", b): row[b]
        for row in table.to_dict("records")
        for b in benchmarks
    }
    expected = {
        (r.budget, r.group, r.method, f"{r[5]:g}", r.benchmark): r.score for r in raw[list(RAW)[1:]].itertuples()
    }
    assert cells == expected


@pytest.mark.parametrize("number", NUMBERS)
def test_every_average_is_the_mean_of_ratios(number):
    """By plain arithmetic on the raw scores, without the code under test."""
    raw, table = RAW[RAW["table"] == number], committed(number)
    base = raw[raw["method"] == "baseline"].set_index("benchmark")["score"]
    for row in table.to_dict("records"):
        expected = sum(100 * row[b] / base[b] for b in base.index) / len(base)
        assert row["avg"] == pytest.approx(expected, abs=0.00501)
    assert (table["method"].iloc[0], table["avg"].iloc[0]) == ("baseline", 100)


@pytest.mark.parametrize(
    "row", PUBLISHED.to_dict("records"), ids=lambda row: f"{row['table']} {row['method']} {row['budget']}"
)
def test_every_published_average_is_met(row):
    table = committed(row["table"])
    (mine,) = table[(table["method"] == row["method"]) & (table["budget"] == row["budget"])]["avg"]
    assert mine == pytest.approx(row["average_percent"], abs=0.01 + 1e-9)


def test_committed_files_are_what_the_command_writes():
    for table in paper.published(FOLDER):
        for kind in tables.FORMATS:
            text = tables.text_of(kind, [table], published=True)
            assert (FOLDER / f"{table.name}.{kind}").read_text(encoding="utf-8") == text


def test_a_published_average_that_its_scores_do_not_give_is_named(tmp_path):
    (tmp_path / paper.SCORES).write_text((FOLDER / paper.SCORES).read_text())
    text = (
        (FOLDER / paper.AVERAGES)
        .read_text()
        .replace("1,qwen25vl7b,keep=0.25,fastv,,87.16", "1,qwen25vl7b,keep=0.25,fastv,,88")
    )
    (tmp_path / paper.AVERAGES).write_text(text)
    (first, *others) = paper.published(tmp_path)
    assert first.notes == ["published average of fastv keep=0.25 is 88.00, its scores give 87.16"]
    assert not any(table.notes for table in others)


def test_every_benchmark_of_the_paper_is_known_here():
    facts = paper.facts()
    assert set(RAW["benchmark"]) == set(facts["benchmarks"])
    assert set(RAW["table"]) == set(facts["captions"])


# Ours beside theirs.


def ours(root, method, ai2d, mme, **more):
    """One run of two benchmarks of table 1, in lmms-eval's own scales and under its own names."""
    scores = {
        "ai2d": {"exact_match,flexible-extract": ai2d},
        "mme": {"mme_perception_score,none": mme, "mme_cognition_score,none": 300.0},
    }
    each = {task: {name: [1.0] for name in columns} for task, columns in scores.items()}
    folder = make_run(root, method, each, scores=scores, model="qwen25vl7b", **more)
    folder.show({"ai2d": "exact_match,flexible-extract", "mme": "mme_perception_score,none + mme_cognition_score,none"})
    return folder


@pytest.fixture
def runs(tmp_path):
    ours(tmp_path, "none", 0.83, 1700.0)
    ours(tmp_path, "idpruner", 0.80, 1690.0, lam=0.5)
    ours(tmp_path, "idpruner", 0.79, 1600.0, lam=0.9)
    ours(tmp_path, "random", 0.5, 1000.0)
    return tmp_path


def row(table, source, method="idpruner", budget="keep=0.25", lam=None):
    frame = table.frame
    found = frame[(frame["source"] == source) & (frame["method"] == method) & (frame["budget"] == budget)]
    found = found if lam is None else found[found["lambda"] == lam]
    assert len(found) == 1
    return found.iloc[0]


def test_ours_stand_beside_theirs_on_their_scale(runs):
    first, seventh = paper.published_and_ours(FOLDER, collect(runs))
    mine, difference = row(first, "ours"), row(first, "difference")
    assert (mine["ai2d"], mine["mme"]) == pytest.approx((80.0, 1690.0))  # MME: perception alone, as published
    theirs = row(first, "paper")
    assert difference["ai2d"] == pytest.approx(80.0 - theirs["ai2d"])
    assert difference["mme"] == pytest.approx(1690 - theirs["mme"])
    assert row(first, "ours", "baseline", "")["ai2d"] == pytest.approx(83.0)
    assert (first.name, seventh.name) == ("table1", "table7")


def test_lambda_matches_and_its_default_is_the_row_without(runs):
    first, seventh = paper.published_and_ours(FOLDER, collect(runs))
    assert len(first.frame[first.frame["source"] == "ours"]) == 2  # unpruned, and idpruner at its default
    assert row(seventh, "ours", lam=0.9)["ai2d"] == pytest.approx(79.0)
    assert row(seventh, "ours", lam=0.5)["ai2d"] == pytest.approx(80.0)


def test_what_ours_lacks_is_named_and_has_no_average(runs):
    first = paper.published_and_ours(FOLDER, collect(runs))[0]
    assert pd.isna(row(first, "ours")["avg"])
    assert pd.isna(row(first, "difference")["docvqa"])
    notes = " ".join(first.notes)
    assert "ours lacks idpruner keep=0.25: chartqa, docvqa" in notes
    assert "not run here: fastv keep=0.25" in notes


def test_the_first_questions_alone_are_marked(tmp_path):
    ours(tmp_path, "none", 0.8, 1700.0, limit=20)
    first = paper.published_and_ours(FOLDER, collect(tmp_path))[0]
    assert any("answers only the first 20 questions" in note for note in first.notes)


def test_whole_rows_have_averages(tmp_path):
    """Table 3 has three benchmarks; ours at half of each of theirs, relative to ours at theirs, is 50 %."""
    scale = {"vinoground": 1, "videomme": 1, "seedbench": 100}
    base = RAW[(RAW["table"] == "3") & (RAW["method"] == "baseline")].set_index("benchmark")["score"]
    names = {
        "vinoground": "vinoground_score,none",
        "videomme": "videomme_perception_score,none",
        "seedbench": "seed_all,none",
    }
    for method, share in (("none", 1.0), ("dart", 0.5)):
        scores = {t: {n: share * base[t] / scale[t]} for t, n in names.items()}
        each = {t: {n: [1.0]} for t, n in names.items()}
        make_run(tmp_path, method, each, scores=scores, model="qwen25vl7b")
    (table,) = paper.published_and_ours(FOLDER, collect(tmp_path))
    assert table.name == "table3"
    assert row(table, "ours", "dart")["avg"] == pytest.approx(50)
    assert row(table, "ours", "baseline", "")["avg"] == pytest.approx(100)
    assert row(table, "difference", "dart")["avg"] == pytest.approx(50 - row(table, "paper", "dart")["avg"])
    text = markdown(table)
    assert "| difference |" in text
    assert "+0.00" in text
    assert list(sheet([table]))[:7] == ["model", "tasks", "budget", "group", "method", "lambda", "source"]


def test_budgets_match_as_numbers(tmp_path):
    ours(tmp_path, "none", 0.8, 1700.0)
    ours(tmp_path, "dart", 0.5, 1000.0, keep=0.1)
    first = paper.published_and_ours(FOLDER, collect(tmp_path))[0]
    assert row(first, "ours", "dart", "keep=0.10")["ai2d"] == pytest.approx(50.0)
    assert Result.of(next(tmp_path.glob("dart*"))).budget == "keep=0.1"
