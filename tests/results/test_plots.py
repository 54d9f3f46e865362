"""Pictures show the numbers they are given, and are not made where there is nothing to show."""

import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from harness.results import plots
from harness.results.stats import AVERAGE

GROUPS = {"baseline": "", "random": "control", "greedy": "importance", "idpruner": "hybrid"}


@pytest.fixture
def frame():
    rows = []
    for method, group in GROUPS.items():
        for keep in ("",) if method == "baseline" else ("keep=0.5", "keep=0.25"):
            value = {"baseline": 100, "random": 40, "greedy": 90, "idpruner": 95}[method] - 5 * (keep == "keep=0.25")
            for benchmark, shift in (("x_one", 3), ("x_two", -3), ("x_three", 0), (AVERAGE, 0)):
                percent = value + shift * (method != "baseline")
                row = {"hash": method + keep, "budget": keep, "benchmark": benchmark, "relative": percent}
                row |= {"low": percent - 2, "high": percent + 2, "method": method, "name": method, "group": group}
                k = {"": 100.0, "keep=0.5": 50.0, "keep=0.25": 25.0}[keep]
                row |= {"lambda": np.nan, "params": "{}", "K": k, "per_layer": k + 9 * (method == "greedy")}
                rows.append(row)
    return pd.DataFrame(rows)


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines() if not str(line.get_label()).startswith("_")}


def test_the_radar_has_a_closed_line_for_each_method(frame):
    figure = plots.radar(frame, "keep=0.25")
    assert [axis.get_title(loc="center") for axis in figure.axes] == ["control", "importance", "hybrid"]
    values = lines(figure.axes[2])["idpruner"].get_ydata()
    assert list(values) == [93, 87, 90, 93]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["one", "two", "three"]
    assert plots.radar(frame[frame["benchmark"] != "x_one"], "keep=0.25") is None


def test_score_against_budget_marks_what_cuts_inside_the_model(frame):
    figure = plots.budgets(frame)
    greedy, ours = lines(figure.axes[1])["greedy"], lines(figure.axes[2])["idpruner"]
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([25, 50], [90, 95])
    assert greedy.get_markerfacecolor() == "none" != ours.get_markerfacecolor()
    assert plots.budgets(frame[frame["budget"] != "keep=0.5"]) is None


def test_the_pareto_front_is_what_nothing_beats_in_both(frame):
    times = {"baseline": 40, "randomkeep=0.5": 11, "randomkeep=0.25": 10, "greedykeep=0.5": 30, "greedykeep=0.25": 20}
    times |= {"idpruner" + "keep=0.5": 25, "idprunerkeep=0.25": 21}
    figure = plots.pareto(frame, pd.DataFrame({"hash": list(times), "prefill_ms": list(times.values())}))
    step = figure.axes[0].get_lines()[0]
    assert list(zip(step.get_xdata(), step.get_ydata(), strict=True)) == [
        (10, 35),
        (11, 40),
        (20, 85),
        (21, 90),
        (25, 95),
        (40, 100),
    ]
    assert plots.pareto(frame, pd.DataFrame({"hash": ["baseline"], "prefill_ms": [1.0]})) is None


def test_the_ablation_needs_two_values_of_lambda(frame):
    assert plots.ablation(frame) is None
    parts = []
    for lam, better in ((0.25, 0), (0.75, 4)):
        part = frame[frame["method"] == "idpruner"].assign(**{"lambda": lam})
        part["relative"] += better
        parts.append(part)
    figure = plots.ablation(pd.concat(parts))
    curve = lines(figure.axes[0])["idpruner, keep=0.25"]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0.25, 0.75], [90, 94])


def test_bars_have_the_length_of_their_score_and_the_whisker_of_their_interval(frame):
    frame.loc[frame["hash"] == "randomkeep=0.25", ["low", "high"]] = np.nan
    figure = plots.bars(frame, "keep=0.25")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["average", "one", "two", "three"]
    axis = figure.axes[0]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert dict(zip(names, [bar.get_width() for bar in axis.patches], strict=True)) == {
        "random": 35,
        "greedy": 85,
        "idpruner": 90,
    }
    (whiskers,) = axis.collections
    assert [list(segment[:, 0]) for segment in whiskers.get_segments()] == [[83, 87], [88, 92]]


def test_files_are_the_same_each_time_and_on_white(frame, tmp_path):
    for folder in ("a", "b"):
        plots.save({"radar": plots.radar(frame, "keep=0.25")}, tmp_path / folder)
    for kind in ("svg", "pdf", "png"):
        one, two = ((tmp_path / folder / f"radar.{kind}").read_bytes() for folder in ("a", "b"))
        assert one == two


def test_inline_svg_takes_the_colours_of_the_page_and_shares_no_id(frame):
    both = [plots.inline(plots.radar(frame, "keep=0.25"), name, "Profile") for name in ("a", "b")]
    for name, text in zip("ab", both, strict=True):
        root = ET.fromstring(text)
        assert (root.get("role"), root.get("aria-label")) == ("img", "Profile")
        assert "var(--ink)" in text
        assert plots.INK not in text
        ids = {node.get("id") for node in root.iter() if node.get("id")}
        assert all(it.startswith(f"{name}-") for it in ids)
        used = {value[1:] for node in root.iter() for key, value in node.attrib.items() if key == "href"}
        assert used <= ids
