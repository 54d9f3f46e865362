"""What an analysis leaves lies in its folder, whatever the model is called."""

import pandas as pd
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from harness.analyze.output import leave
from harness.core.overrides import compose

NAMES = ["../../evil", "a/b", "/etc/x", "=$\\frac{<script>\x1b[31m\u2028\nx", "x" * 60]


@pytest.mark.parametrize("name", NAMES)
def test_files_lie_in_the_folder_under_one_plain_name(name, tmp_path, capsys):
    cfg = OmegaConf.create({"out": str(tmp_path / "out")})
    leave(cfg, name, pd.DataFrame({"x": ["=1"]}), Figure(), {"mean": float("nan")})
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".csv", ".json", ".png"}
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert all(file.name.isprintable() for file in (tmp_path / "out").iterdir())
    assert capsys.readouterr().out.count("\n") == 2


def test_a_scorer_lies_below_the_folder_of_scorers():
    assert compose("train", ["model.name=../../evil"]).out == "results/scorers/evil"
