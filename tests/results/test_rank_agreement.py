"""scripts/rank_agreement.py gives Spearman's correlation over the methods that two tables have in common."""

import runpy
import sys

import pandas as pd
import pytest
from doc_guides import ROOT
from scipy.stats import spearmanr

POCKET = ROOT / "results" / "pocket"


def said(monkeypatch, capsys, *files):
    monkeypatch.setattr(sys, "argv", ["rank_agreement.py", *map(str, files)])
    runpy.run_path(str(ROOT / "scripts" / "rank_agreement.py"), run_name="__main__")
    _, _, *rows = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_it_is_the_correlation_of_the_shown_averages(monkeypatch, capsys):
    rows = said(monkeypatch, capsys, POCKET / "table.csv", POCKET / "llava.csv")
    assert [row[:3:2] for row in rows[:2]] == [["keep=0.25", "keep=0.25"], ["keep=0.1", "keep=0.1"]]
    frames = [pd.read_csv(POCKET / f"{name}.csv").query("budget == 'keep=0.1'") for name in ("table", "llava")]
    before = [frame[frame["per_layer"] <= frame["K"]].set_index("method")["avg"] for frame in frames]
    both = sorted(set(before[0].index) & set(before[1].index))
    _, _, _, _, found, interval, count, found_before, interval_before = rows[1]
    assert int(count) == len(both) > 10
    assert float(found_before) == pytest.approx(spearmanr(*(side[both] for side in before))[0], abs=0.006)
    for value, span in ((found, interval), (found_before, interval_before)):
        low, high = map(float, span.split(" to "))
        assert -1 <= low < float(value) < high <= 1


def test_a_table_agrees_with_itself_within_its_noise(monkeypatch, capsys):
    for row in said(monkeypatch, capsys, POCKET / "table.csv", POCKET / "table.csv"):
        assert row[4] == "1.00"
        assert float(row[5].split(" to ")[0]) < 1
