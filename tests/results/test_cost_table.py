"""The committed pages of costs and scores are what the script makes of the committed files."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "results" / "pocket"


@pytest.mark.parametrize(("page", "scores"), [("pocket", "table"), ("llava", "llava")])
def test_pages_of_costs_are_made_by_the_script(monkeypatch, capsys, page, scores):
    costs = sorted((POCKET / "cost").glob(f"{page}*.csv"))
    monkeypatch.setattr(sys, "argv", ["cost_table.py", str(POCKET / f"{scores}.csv"), *map(str, costs)])
    runpy.run_path(str(ROOT / "scripts" / "cost_table.py"), run_name="__main__")
    made = capsys.readouterr().out
    assert made == (POCKET / "cost" / f"{page}.md").read_text(encoding="utf-8")
    assert made.count("| keep=") == 2
    assert made.count("| idpruner |") == 2
