"""Pictures show the numbers they are given, and are not made where there is nothing to show."""

import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

import methods
from harness.results import method_groups, plots
from harness.results.stats import AVERAGE
from harness.results.web import StyleSheet

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


def test_the_radar_has_a_panel_with_a_closed_line_and_band_for_each_method(frame):
    figure = plots.radar(frame, "keep=0.25")
    assert [axis.get_title(loc="center") for axis in figure.axes] == ["Random", "Greedy", "IDPruner"]
    values = lines(figure.axes[2])["IDPruner"].get_ydata()
    assert list(values) == [93, 87, 90, 93]
    (band,) = figure.axes[2].collections
    assert {85.0, 95.0} <= set(band.get_paths()[0].vertices[:, 1])  # from the least low to the largest high
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["one", "two", "three"]
    assert plots.radar(frame[frame["benchmark"] != "x_one"], "keep=0.25") is None


def test_score_against_budget_marks_what_cuts_inside_the_model(frame):
    figure = plots.budgets(frame)
    greedy, ours = lines(figure.axes[1])["Greedy"], lines(figure.axes[2])["IDPruner"]
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([25, 50], [90, 95])
    assert greedy.get_markerfacecolor() == "none" != ours.get_markerfacecolor()
    assert plots.budgets(frame[frame["budget"] != "keep=0.5"]) is None


TIMES = {"baseline": 40, "randomkeep=0.5": 11, "randomkeep=0.25": 10, "greedykeep=0.5": 30, "greedykeep=0.25": 20}
TIMES |= {"idprunerkeep=0.5": 25, "idprunerkeep=0.25": 21}


def measured(iqr, times=TIMES):
    return pd.DataFrame({"hash": list(times), "prefill_ms": list(times.values()), "prefill_iqr_ms": iqr})


def dashed(axis):
    return [line for line in axis.get_lines() if line.get_linestyle() == "--"]


def test_the_pareto_front_is_what_nothing_beats_in_both(frame):
    figure = plots.pareto(frame, measured(0.0))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["keep=0.5", "keep=0.25"]
    (step,) = dashed(figure.axes[0])
    assert list(zip(step.get_xdata(), step.get_ydata(), strict=True)) == [
        (10, 35),
        (11, 40),
        (20, 85),
        (21, 90),
        (25, 95),
        (40, 100),
    ]
    assert plots.pareto(frame, measured(0.0, {"baseline": 1.0})) is None


def test_the_front_is_drawn_only_where_it_is_wider_than_the_noise(frame):
    """With quartiles of 3 ms on each side, 10 and 11 ms are equal, and so are 20, 21 and 25."""
    front = plots.front(plots.points(frame, measured(6.0)))
    assert list(zip(front["prefill_ms"], front["relative"], strict=True)) == [(10, 40), (20, 95), (40, 100)]
    wide = frame.assign(low=frame["relative"] - 3, high=frame["relative"] + 3)  # 95 and 100 overlap
    assert list(plots.front(plots.points(wide, measured(6.0)))["relative"]) == [40, 95]
    for times in (measured(40.0), measured(np.nan)):
        assert plots.front(plots.points(frame, times)).empty
        assert dashed(plots.pareto(frame, times).axes[0]) == []
    assert plots.front(plots.points(frame.assign(low=np.nan), measured(6.0))).empty


def test_times_and_scores_have_error_bars(frame):
    axis = plots.pareto(frame, measured(6.0)).axes[1]
    ends = [segments.get_segments()[0].tolist() for segments in axis.collections]
    assert [[17, 85], [23, 85]] in ends  # greedy at keep=0.25: quartiles of the time
    assert [[20, 83], [20, 87]] in ends  # and the interval of its score
    assert len(ends) == 8


def test_the_ablation_needs_two_values_of_lambda(frame):
    assert plots.ablation(frame) is None
    parts = []
    for lam, better in ((0.25, 0), (0.75, 4)):
        part = frame[frame["method"] == "idpruner"].assign(**{"lambda": lam})
        part["relative"] += better
        parts.append(part)
    figure = plots.ablation(pd.concat(parts))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["keep=0.5", "keep=0.25"]
    curve = lines(figure.axes[1])["IDPruner"]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0.25, 0.75], [90, 94])
    assert [segment[:, 1].tolist() for segment in figure.axes[1].collections[0].get_segments()] == [[88, 92], [88, 92]]


def test_bars_have_the_length_of_their_score_and_the_whisker_of_their_interval(frame):
    frame.loc[frame["hash"] == "randomkeep=0.25", ["low", "high"]] = np.nan
    figure = plots.bars(frame, "keep=0.25")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["average", "one", "two", "three"]
    axis = figure.axes[0]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert dict(zip(names, [bar.get_width() for bar in axis.patches], strict=True)) == {
        "Random": 35,
        "Greedy": 85,
        "IDPruner": 90,
    }
    (whiskers,) = axis.collections
    assert [list(segment[:, 0]) for segment in whiskers.get_segments()] == [[83, 87], [88, 92]]


def looks(figure):
    """Label -> colour and marker of its lines in all panels."""
    return {(label, line.get_color(), line.get_marker()) for axis in figure.axes for label, line in lines(axis).items()}


def test_a_method_looks_the_same_in_every_figure_whatever_else_is_shown(frame):
    alone = frame[frame["method"].isin({"baseline", "idpruner"})]
    swept = pd.concat([alone.assign(**{"lambda": 0.25}), alone.assign(**{"lambda": 0.5})])
    figures = [plots.radar(frame, "keep=0.25"), plots.budgets(frame), plots.pareto(frame, measured(6.0))]
    figures += [plots.budgets(alone), plots.ablation(swept)]
    ours = {one for figure in figures for one in looks(figure) if one[0] == "IDPruner"}
    assert ours == {("IDPruner", *plots.look("idpruner"))}
    assert len({one[1:] for one in looks(figures[0])}) == 3


def test_lines_of_equal_values_do_not_hide_each_other(frame):
    twin = frame[frame["method"] == "idpruner"].assign(method="hybrid", name="hybrid")
    twin["hash"] += " twin"
    figure = plots.budgets(pd.concat([frame, twin]))
    one, two = (lines(figure.axes[2])[name] for name in ("IDPruner", "Hybrid"))
    assert list(one.get_ydata()) == list(two.get_ydata())
    assert all(abs(np.log2(a / b)) > 0.02 for a, b in zip(one.get_xdata(), two.get_xdata(), strict=True))


def test_runs_of_one_method_differ_in_the_line(frame):
    other = frame[frame["method"] == "idpruner"].assign(name="idpruner (seed 1)")
    other["hash"] += " seed"
    figure = plots.budgets(pd.concat([frame, other]))
    one, two = (lines(figure.axes[2])[name] for name in ("IDPruner", "IDPruner (seed 1)"))
    assert one.get_color() == two.get_color()
    assert one.get_linestyle() != two.get_linestyle()


# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as it is seen without one kind of cone.
SEEN = {
    "all cones": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}
FLOOR = {"all cones": 18, "deuteranopia": 11, "protanopia": 11}  # of CIEDE2000; 2.3 is just noticeable


def lab(linear):
    xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503041]]
    )
    x = xyz @ linear / [0.95047, 1, 1.08883]
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def linear(color):
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def delta_e(one, two):
    """CIEDE2000 (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2([b1, b2], [a1, a2])) % 360
    turn = (h2 - h1 + 180) % 360 - 180
    hue, chroma, light = (h1 + turn / 2) % 360, (c1 + c2) / 2, ((l1 + l2) / 2 - 50) ** 2
    cosines = np.cos(np.radians([hue - 30, 2 * hue, 3 * hue + 6, 4 * hue - 63]))
    t = 1 + cosines @ [-0.17, 0.24, 0.32, -0.2]
    d_l = (l2 - l1) / (1 + 0.015 * light / np.sqrt(20 + light))
    d_c = (c2 - c1) / (1 + 0.045 * chroma)
    d_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    rotation = (
        -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    )
    return np.sqrt(d_l**2 + d_c**2 + d_h**2 + rotation * d_c * d_h)


def test_the_colour_difference_gives_its_authors_values():
    for one, two, expected in (
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ):
        assert delta_e(one, two) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seen", FLOOR)
def test_any_two_colours_are_told_apart(seen):
    colors = {name: lab(np.clip(SEEN[seen] @ linear(color), 0, 1)) for name, color in plots.COLOURS.items()}
    differences = {pair: delta_e(colors[pair[0]], colors[pair[1]]) for pair in combinations(colors, 2)}
    assert min(differences.values()) >= FLOOR[seen], min(differences, key=differences.get)


def test_no_two_methods_look_the_same_and_grey_tells_those_with_one_marker_apart():
    known = [*methods.names(), *method_groups.methods(), "my_pruner.py:MyPruner"]
    looks = {name: plots.look(name) for name in dict.fromkeys(known) if name != "none"}
    assert len(looks) >= 23
    assert set(looks) - set(method_groups.methods()) == {"my_pruner.py:MyPruner"}
    assert len(set(looks.values())) == len(looks)
    for one, two in combinations(method_groups.methods(), 2):
        if looks[one][1] == looks[two][1]:
            light, dark = (lab(SEEN["grey"] @ linear(looks[name][0]))[0] for name in (one, two))
            assert abs(light - dark) >= 5, (one, two)


@pytest.mark.parametrize("behind", ["#ffffff", "#14171b"])
def test_colours_contrast_with_white_and_with_the_dark_page(behind):
    for name, color in plots.COLOURS.items():
        bright, dim = sorted((SEEN["grey"] @ linear(it))[0] + 0.05 for it in (color, behind))[::-1]
        assert bright / dim >= 3, name


def test_pdfs_embed_true_type_fonts(frame, tmp_path):
    (file,) = plots.save({"radar": plots.radar(frame, "keep=0.25")}, tmp_path, ["pdf"])
    assert b"/CIDFontType2" in file.read_bytes()
    assert b"/Type3" not in file.read_bytes()


def test_files_are_the_same_each_time_and_on_white(frame, tmp_path):
    for folder in ("a", "b"):
        plots.save({"radar": plots.radar(frame, "keep=0.25")}, tmp_path / folder)
    for kind in ("svg", "pdf", "png"):
        one, two = ((tmp_path / folder / f"radar.{kind}").read_bytes() for folder in ("a", "b"))
        assert one == two


def test_inline_svg_takes_the_colours_of_the_page_and_shares_no_id(frame):
    sheet = StyleSheet()
    both = [plots.inline(plots.radar(frame, "keep=0.25"), name, "Profile", sheet) for name in ("a", "b")]
    seen: set[str] = set()
    for text in both:
        root = ET.fromstring(text)
        assert (root.get("role"), root.get("aria-label")) == ("img", "Profile")
        assert " style=" not in text
        ids = {node.get("id") for node in root.iter() if node.get("id")}
        assert ids.isdisjoint(seen)
        seen |= ids
        used = {value[1:] for node in root.iter() for key, value in node.attrib.items() if key == "href"}
        assert used <= ids
    assert "var(--ink)" in sheet.text
    assert plots.INK not in sheet.text
