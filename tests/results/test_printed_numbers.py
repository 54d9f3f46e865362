"""The tables of docs show the cells of the committed CSV files."""

import runpy
import sys
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
    "`pocket` 0.25": ("table", "keep=0.25"),
    "`pocket` 0.1": ("table", "keep=0.1"),
    "`pocket_llava` 0.25": ("llava", "keep=0.25"),
    "`pocket_llava` 0.1": ("llava", "keep=0.1"),
    "`pocket_llava` 57 tokens": ("llava", "tokens=57"),
    "`pocket_llava` 28 tokens": ("llava", "tokens=28"),
    "`pocket_llava` 14 tokens": ("llava", "tokens=14"),
}
CLIP_TASKS = ("order", "around", "ends", "times", "turns", "places")
METRICS = {f"{kind}_{task}" for kind in ("pocket", "blank") for task in CLIP_TASKS}
ROWS = [("table", "`pocket`"), ("blank", "blanked"), ("llava", "`pocket_llava`"), ("llava_blank", "blanked")]


def sheet(name: str) -> pd.DataFrame:
    frame = pd.read_csv(POCKET / f"{name}.csv", dtype=str, keep_default_na=False)
    names = frame["method"].str.extract(r"^(\S+)(?: \((?!prior)(.*)\))?").fillna("")  # the file of a prior is left out
    return frame.assign(name=names.agg(" ".join, axis=1).str.strip())


def test_the_results_show_the_averages():
    head, *rows = rows_below(ROOT / "docs" / "results.md", "`pocket` 0.25")
    assert head[3:] == list(COLUMNS)
    shown = {(row[1], title): cell.strip("* ≈") for row in rows for title, cell in zip(head, row, strict=True)}
    files = {name: sheet(name) for name in ("table", "llava")}
    pruned = 0
    for title, (name, budget) in COLUMNS.items():
        block = files[name][files[name]["budget"] == budget]
        assert block["name"].is_unique
        for method, average in zip(block["name"], block["avg"], strict=True):
            assert shown.pop((method, title)) == average, (method, title)
            pruned += 1
        before = block[block["K"].astype(float) >= block["per_layer"].astype(float)]
        best = before["avg"].astype(float) == before["avg"].astype(float).max()
        assert rows_marked(head, rows, title, "**") == set(before.loc[best, "name"])
        assert rows_marked(head, rows, title, "≈") == set(before.loc[before["as_best"].str.contains("avg"), "name"])
    assert pruned > 140  # rows of `pocket_llava`, too
    left = {(method, cell) for (method, title), cell in shown.items() if title in COLUMNS}
    assert {cell for _, cell in left} == {"-"}  # newer methods; resize where all images are one size
    frame = files["table"]
    (unpruned,) = frame.loc[frame["method"] == "baseline", "K"].astype(float)
    for row in rows:
        blocks = frame[(frame["name"] == row[1]) & frame["budget"].isin(["keep=0.25", "keep=0.1"])]
        shares = blocks.sort_values("budget", ascending=False)["per_layer"].astype(float) / unpruned
        assert row[2] == ", ".join(f"{100 * share:.0f} %" for share in shares), row[1]


NEWER = {  # title of the second table -> file, budget
    "at 0.25 of `pocket_llava`": ("newer_llava", "keep=0.25"),
    "at 0.1 of `pocket_llava`": ("newer_llava", "keep=0.1"),
}


def test_the_results_show_the_averages_of_newer_methods():
    """Each with the share of the picture's tokens that a layer sees on average."""
    head, *rows = rows_below(ROOT / "docs" / "results.md", "at 0.25 of `pocket_llava`")
    assert head[1:] == list(NEWER)
    for title, (name, budget) in NEWER.items():
        frame = sheet(name)
        (unpruned,) = frame.loc[frame["method"] == "baseline", "K"].astype(float)
        block = frame[frame["budget"] == budget]
        cells = {row[0]: row[head.index(title)] for row in rows}
        assert cells == {
            row["name"]: f"{row['avg']} ({100 * float(row['per_layer']) / unpruned:.0f} %)"
            for row in block.to_dict("records")
        }


PHOTO = {"0.25": "keep=0.25", "0.1": "keep=0.1", "0.05": "keep=0.05"}


def photo_cells() -> dict[tuple[str, str], str]:
    """Method and budget -> average with interval and mark, as the pages print it."""
    frame, cells = sheet("photo"), {}
    for budget in PHOTO.values():
        block = frame[frame["budget"] == budget]
        before = block[block["K"].astype(float) >= block["per_layer"].astype(float)]
        best = before["avg"].astype(float).max()
        for row in block.to_dict("records"):
            text = "{:.1f} ({:.1f} to {:.1f})".format(*(float(row[key]) for key in ("avg", "low", "high")))
            if row["method"] in set(before["method"]):
                like = " ≈" * ("avg" in row["as_best"].split())
                text = f"**{text}**" if float(row["avg"]) == best else text + like
            cells[row["name"], budget] = text
    return cells


def test_the_results_show_every_average_of_photographs():
    head, *rows = rows_below(ROOT / "docs" / "results.md", "| 0.25 | 0.1 | 0.05 |")
    shown = {(row[1], PHOTO[title]): cell for row in rows for title, cell in zip(head[3:], row[3:], strict=True)}
    cells = photo_cells()
    assert {key: cell for key, cell in shown.items() if cell != "-"} == cells
    assert len(cells) == 89
    records = sheet("photo").to_dict("records")
    sees = {(row["name"], row["budget"]): 100 * float(row["per_layer"]) / 256 for row in records}
    for _, name, *given in (row[:3] for row in rows):
        shares = [f"{sees[name, budget]:.0f} %" for budget in PHOTO.values() if (name, budget) in sees]
        assert given == [", ".join(shares)]


def test_the_readme_shows_ten_of_them():
    head, *rows = rows_below(ROOT / "README.md", "a tenth")
    assert (len(rows), len(head)) == (10, 4)
    of_title = {title_of(name): name for name in methods()}
    cells = photo_cells()
    for title, *given in rows:
        assert given == [cells[of_title[title], budget] for budget in PHOTO.values()], title


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


CLIPS = {f"{name} {budget}": (name, f"keep={budget}") for name in ("clips", "places") for budget in ("0.25", "0.1")}


def test_the_results_show_the_averages_of_clips_and_places():
    head, *rows = rows_below(ROOT / "docs" / "results.md", "clips 0.25")
    assert head[1:] == list(CLIPS)
    for title, (name, budget) in CLIPS.items():
        frame = sheet(name)
        block = frame[frame["budget"] == budget].to_dict("records")
        cells = {row[0]: row[head.index(title)] for row in rows if row[head.index(title)] != "-"}
        assert cells == {row["name"]: f"{row['avg']} ({row['low']} to {row['high']})" for row in block}


def rows_marked(head: list[str], rows: list[list[str]], title: str, mark: str) -> set[str]:
    place = head.index(title)
    return {row[1] for row in rows if row[place].endswith(mark)}


POCKET_SUITE, LLAVA_SUITE = ("pocket", "pocket"), ("pocket_llava", "pocket_image")
GAINS = [  # model and suite, two runs, and how the page prints the difference of their averages
    (POCKET_SUITE, "greedy keep=0.1", "fps keep=0.1", "7.7", "(6.0 to 9.3)"),
    (POCKET_SUITE, "idpruner keep=0.1", "greedy keep=0.1", "0.5", "(-0.3 to 1.3)"),
    (LLAVA_SUITE, "greedy tokens=14", "fps tokens=14", "-0.5", "(-0.5, -1.9 to 0.8)"),
    (LLAVA_SUITE, "idpruner tokens=14", "greedy tokens=14", "1.5", "(0.7 to 2.3)"),
    (LLAVA_SUITE, "idpruner tokens=14", "fps tokens=14", "1.0", "(-0.2 to 2.2)"),
    (POCKET_SUITE, "cdpruner keep=0.1", "idpruner keep=0.1", "3.6", "(2.5 to 4.7)"),
    (LLAVA_SUITE, "cdpruner tokens=14", "idpruner tokens=14", "1.2", "(0.2 to 2.2)"),
    (LLAVA_SUITE, "cdpruner keep=0.1", "idpruner keep=0.1", "0.7", "(0.7, -0.0 to 1.4)"),
    (LLAVA_SUITE, "cdpruner tokens=28", "idpruner tokens=28", "0.3", "(0.3, -0.4 to 1.1)"),
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
