"""The tables of docs show the cells of the committed CSV files."""

import runpy
import sys
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pandas as pd
import pytest
from printed import percent, rows_below

from harness.compare import compare
from harness.results.formats import sheet as sheet_of
from harness.results.frames import read_scores
from harness.results.method_groups import methods, title_of
from harness.results.result import collect
from harness.results.table import tables_of

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "results" / "pocket"
PUBLISHED = ROOT / "results" / "paper" / "published_scores.csv"
COLUMNS = {  # title on the page -> file, budget
    f"`{model}` {share}": (name, f"keep={share}")
    for model, name in (("pocket", "table"), ("pocket_llava", "llava"))
    for share in ("0.25", "0.1")
}
CLIP_TASKS = ("order", "around", "ends", "times", "turns", "places")
METRICS = {f"{kind}_{task}" for kind in ("pocket", "blank") for task in CLIP_TASKS}
ROWS = [("table", "`pocket`"), ("blank", "blanked"), ("llava", "`pocket_llava`"), ("llava_blank", "blanked")]


def sheet(name: str) -> pd.DataFrame:
    frame = pd.read_csv(POCKET / f"{name}.csv", dtype=str, keep_default_na=False)
    names = frame["method"].str.extract(r"^(\S+)(?: \((?!prior)(.*)\))?").fillna("")  # the file of a prior is left out
    return frame.assign(name=names.agg(" ".join, axis=1).str.strip())


def short(number: str) -> str:
    return str(Decimal(number).quantize(Decimal("0.1"), ROUND_HALF_UP))


def cells_of(name: str, budget: str) -> dict[str, str]:
    """Method -> average with interval and mark, as the pages print it."""
    frame = sheet(name)
    block = frame[frame["budget"] == budget]
    assert block["name"].is_unique
    before = block[block["K"].astype(float) >= block["per_layer"].astype(float)]
    best, cells = before["avg"].astype(float).max(), {}
    for row in block.to_dict("records"):
        text = "{} ({} to {})".format(*(short(row[key]) for key in ("avg", "low", "high")))
        if row["method"] in set(before["method"]):
            like = " ≈" * ("avg" in row["as_best"].split())
            text = f"**{text}**" if float(row["avg"]) == best else text + like
        cells[row["name"]] = text
    return cells


def shares_seen(name: str, budgets: Iterable[str]) -> dict[str, str]:
    """Method -> the share of visual tokens that a layer sees on average, at each budget that it ran at."""
    frame = sheet(name)
    (unpruned,) = frame.loc[frame["method"] == "baseline", "K"].astype(float)
    seen = frame.assign(share=100 * frame["per_layer"].astype(float) / unpruned).set_index(["budget", "name"])["share"]
    return {
        method: ", ".join(f"{seen[budget, method]:.0f} %" for budget in budgets if (budget, method) in seen)
        for method in set(frame["name"]) - {"baseline"}
    }


PHOTO = {share: ("photo", f"keep={share}") for share in ("0.25", "0.1", "0.05")}


@pytest.mark.parametrize(("columns", "number"), [(PHOTO, 89), (COLUMNS, 122)])
def test_the_results_show_every_average(columns, number):
    head, *rows = rows_below(ROOT / "docs" / "results.md", "| " + " | ".join(columns) + " |")
    shown = {title: {row[1]: row[head.index(title)] for row in rows} for title in columns}
    cells = {title: cells_of(*column) for title, column in columns.items()}
    assert {title: {m: cell for m, cell in column.items() if cell != "-"} for title, column in shown.items()} == cells
    assert sum(map(len, cells.values())) == number
    first = next(iter(columns.values()))[0]
    budgets = [budget for name, budget in columns.values() if name == first]
    assert {row[1]: row[2] for row in rows} == shares_seen(first, budgets)


def test_the_readme_shows_ten_of_them():
    head, *rows = rows_below(ROOT / "README.md", "a tenth")
    assert (len(rows), len(head)) == (10, 4)
    of_title = {title_of(name): name for name in methods()}
    columns = [cells_of(*column) for column in PHOTO.values()]
    for title, *given in rows:
        assert given == [cells[of_title[title]] for cells in columns], title


def test_the_agreement_with_published_orders_is_what_the_script_gives(tmp_path, monkeypatch, capsys):
    (paper := tmp_path / "paper.csv").write_text(sheet_of(tables_of(read_scores(PUBLISHED))).to_csv(index=False))
    files = [POCKET / "photo.csv", paper, POCKET / "table.csv"]
    monkeypatch.setattr(sys, "argv", ["rank_agreement.py", *map(str, files)])
    runpy.run_path(str(ROOT / "scripts" / "rank_agreement.py"), run_name="__main__")
    made = capsys.readouterr().out
    assert made == (POCKET / "agreement.md").read_text(encoding="utf-8")
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in made.splitlines()]
    of = {tuple(row[:3]): row[3:] for row in cells}
    for table, budget in (("table 1 (qwen25vl7b)", "keep=0.10"), ("table 5 (qwen25vl3b)", "keep=0.10")):
        _, found, interval, *_ = of["keep=0.1", table, budget]
        assert f"{found} at a tenth ({interval})" in page or f"{found} ({interval})" in page


@pytest.mark.parametrize(("line", "name"), [("shipped", "photo"), ("again", "photo_again")])
def test_the_page_on_photographs_shows_what_training_again_gave(line, name):
    head, *rows = rows_below(ROOT / "docs" / "photo.md", "existence | counting")
    (shown,) = (dict(zip(head, row, strict=True)) for row in rows if row[0] == line)
    of = {(row["method"], row["budget"]): row for row in sheet(name).to_dict("records")}
    unpruned = of["baseline", ""]
    for title, cell in list(shown.items())[1:]:
        average = of.get((title, "keep=0.1"))
        assert cell == (short(average["avg"]) if average else percent(unpruned[f"photo_{title}"])), title


CLIPS = {f"{name} {budget}": (name, f"keep={budget}") for name in ("clips", "places") for budget in ("0.25", "0.1")}


def test_the_results_show_the_averages_of_clips_and_places():
    head, *rows = rows_below(ROOT / "docs" / "results.md", "clips 0.25")
    assert head[1:] == list(CLIPS)
    for title, (name, budget) in CLIPS.items():
        frame = sheet(name)
        block = frame[frame["budget"] == budget].to_dict("records")
        cells = {row[0]: row[head.index(title)] for row in rows if row[head.index(title)] != "-"}
        assert cells == {row["name"]: f"{row['avg']} ({row['low']} to {row['high']})" for row in block}


POCKET_SUITE, LLAVA_SUITE = ("pocket", "pocket"), ("pocket_llava", "pocket_image")
GAINS = [  # model and suite, two runs, and how the page prints the difference of their averages
    (POCKET_SUITE, "greedy keep=0.1", "fps keep=0.1", "7.7", "(6.0 to 9.3)"),
    (POCKET_SUITE, "idpruner keep=0.1", "greedy keep=0.1", "0.5", "(-0.3 to 1.3)"),
    (LLAVA_SUITE, "greedy keep=0.1", "fps keep=0.1", "-0.6", "(-0.6, -1.3 to 0.1)"),
    (LLAVA_SUITE, "idpruner keep=0.1", "fps keep=0.1", "-0.5", "(-0.5, -1.1 to 0.2)"),
    (LLAVA_SUITE, "scope keep=0.1", "idpruner keep=0.1", "0.8", "(0.1 to 1.4)"),
    (POCKET_SUITE, "cdpruner keep=0.1", "idpruner keep=0.1", "3.6", "(2.5 to 4.7)"),
    (LLAVA_SUITE, "cdpruner keep=0.1", "idpruner keep=0.1", "0.7", "(0.7, -0.1 to 1.4)"),
]


@pytest.mark.parametrize("suite", [POCKET_SUITE, LLAVA_SUITE])
def test_the_results_show_the_differences_that_the_archive_gives(suite):
    runs = {run.title: run for run in collect(POCKET / "runs" / "/".join(suite))}
    text = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    for _, a, b, difference, span in (gain for gain in GAINS if gain[0] == suite):
        row = compare(runs[a], runs[b], runs["baseline"])[0].set_index("task").loc["avg"]
        interval = f"{row['low']:.1f} to {row['high']:.1f})"
        assert (f"{row['difference']:.1f}", interval) == (difference, span.split(", ")[-1].lstrip("(")), (a, b)
        assert span in text, (a, b)


@pytest.mark.parametrize(("place", "name"), [(place, name) for place, (name, _) in enumerate(ROWS)])
def test_the_page_on_the_embedded_models_shows_their_scores(place, name):
    head, *rows = rows_below(ROOT / "docs" / "pocket.md", "existence")
    assert [row[0] for row in rows] == [label for _, label in ROWS]
    frame = sheet(name)
    (unpruned,) = frame[frame["method"] == "baseline"].to_dict("records")
    for title, cell in list(zip(head, rows[place], strict=True))[1:]:
        score = next((value for key, value in unpruned.items() if str(key).endswith(f"_{title}")), None)
        expected = "" if score is None else percent(score)
        assert cell == expected, (title, score)


@pytest.mark.parametrize(
    ("row", "files", "method", "budget"),
    [
        (0, ("clips", "places"), "baseline", ""),
        (1, ("clips_blank", "places_blank"), "baseline", ""),
        (2, ("clips", "places"), "random", "keep=0.1"),
    ],
)
def test_the_page_on_the_embedded_models_shows_clips_and_places(row, files, method, budget):
    head, *rows = rows_below(ROOT / "docs" / "pocket.md", "around")
    scores = {}
    for frame in map(sheet, files):
        (shown,) = frame[(frame["method"] == method) & (frame["budget"] == budget)].to_dict("records")
        scores |= {key.rpartition("_")[2]: value for key, value in shown.items() if key in METRICS}
    assert rows[row][1:] == [percent(scores[title]) for title in head[1:]]
