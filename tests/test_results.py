"""What the embedded model must be able to do: committed results reach their goals, and the weights still read."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parents[1] / "results" / "pocket"
GOALS = {"existence": 0.9, "attributes": 0.9, "text": 0.9}  # of the unpruned model; the other tasks 0.75
CHANCE = {"existence": 0.5, "attributes": 0.25, "counting": 0.2, "video": 0.5}


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(RESULTS / "table.csv").set_index(["method", "budget"])


def test_the_unpruned_model_reaches_its_goals(table):
    scores = table.loc["baseline"].iloc[0].filter(like="pocket_")
    missed = {name: score for name, score in scores.items() if score < GOALS.get(name.removeprefix("pocket_"), 0.75)}
    assert len(scores) == 9
    assert not missed


def test_a_blanked_picture_leaves_chance():
    blank = pd.read_csv(RESULTS / "blank.csv").iloc[0]
    for task, chance in CHANCE.items():
        assert blank[f"blank_{task}"] == pytest.approx(chance, abs=0.05)
    for task in ("text", "documents", "charts", "vega"):
        assert blank[f"blank_{task}"] < 0.1


def test_the_suite_tells_methods_apart(table):
    assert table.loc[("random", 0.1), "avg"] <= 85
    for budget in (0.5, 0.25, 0.1):
        assert table.loc[("idpruner", budget), "avg"] > table.loc[("random", budget), "avg"]


def test_the_shipped_weights_read(tmp_path):
    command = [sys.executable, "-m", "harness", "method=none", "tasks=[pocket_text]", "limit=40", f"runs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    scores = json.loads(done.stdout.splitlines()[-1])["scores"]["pocket_text"]
    assert scores["accuracy,none"] >= 0.9
