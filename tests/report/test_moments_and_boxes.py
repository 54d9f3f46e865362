"""The gallery shows a video moment by moment, and draws the boxes of questions that ask where."""

import json
import re
from functools import partial

import pytest
from browser import browser, chromium, opened
from PIL import Image
from run_folders import sealed_again
from synthetic_runs import write_run

from harness.core.overrides import compose
from harness.report import answers, gallery, images
from harness.report.build import build
from harness.results.result import collect

GRID = [4, 5, 5]  # moments, rows, columns
TARGET, BOX, VIEW = [0.5, 0.1, 0.75, 0.5], [0.4, 0.2, 0.8, 1.3], [0.25, 0.0, 0.75, 1.0]


def rewritten(path, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | change(line)) + "\n" for line in lines))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on a task of videos and one that asks where, of which the model sees the middle half of each picture."""
    root = tmp_path_factory.mktemp("made") / "runs"
    for method in ("none", "random"):
        path = write_run(root, method, questions=3, tasks={"t_video": "accuracy,none", "t_where": "accuracy,none"}).path
        videos = [{"frames": 8, "seconds_per_step": 1.5, "tokens": 100}]
        of_task = {"t_video": {"grids": [GRID], "videos": videos}, "t_where": {"target": TARGET, "view": VIEW}}
        rewritten(path / "kept.jsonl", lambda line, of_task=of_task: of_task[line["task"]])
        box = BOX if method == "random" else None
        boxes = {"t_video": {}, "t_where": {"box": box}}
        rewritten(path / "responses.jsonl", lambda line, boxes=boxes: boxes[line["task"]])
        sealed_again(path)
    return root


def test_what_runs_recorded_reaches_the_sample(runs, tmp_path):
    results = collect(runs)
    assert answers.read(results[0])["t_video", 0].seconds == [1.5]
    sample = gallery.gather(results, 2)
    (setting,) = sample["settings"]
    video, where = setting["questions"][0], setting["questions"][-1]
    assert (video["grids"], video["seconds"]) == ([GRID], [1.5])
    assert not {"where", "boxes"} & set(video)
    assert where["where"] == [0.5, 0.1, 1.0, 0.5]  # of the middle half
    names = [result.method for result in results]
    assert dict(zip(names, where["boxes"], strict=True)) == {"baseline": None, "random": [0.3, 0.2, 1.1, 1.3]}
    gallery.save(sample, tmp_path / "sample.json")
    pruned = [result for result in results if result.method == "random"]
    (setting,) = gallery.load(tmp_path / "sample.json", pruned)["settings"]
    assert setting["questions"][-1]["boxes"] == [[0.3, 0.2, 1.1, 1.3]]


def illustrated(setting, config, keep):
    for question in setting["questions"]:
        colors = [(60 * moment, 90, 90) for moment in range(question["grids"][0][0])]
        pictures = [keep(Image.new("RGB", (140, 140), color)) for color in colors]
        question.update(text="What?", target="yes", pictures=pictures)
    return []


@pytest.fixture(scope="module")
def page(runs):
    if chromium() is None:
        pytest.skip("NO CHROMIUM HERE: the page is not tested in a browser (apt-get install chromium)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "illustrate", illustrated)
        out = runs.parent / "report.html"
        build(compose("report", [f"runs={runs}", f"out={out}", "questions=3"]))
    with browser() as started, opened(started, out) as shown:
        shown.page.locator("#gallery").scroll_into_view_if_needed()
        yield shown.page
        assert shown.errors == []


def tokens_in(path):
    runs = [tuple(map(int, found)) for found in re.findall(r"M(\d+) (\d+)h(\d+)v1", path)]
    return {(y, x + i) for x, y, run in runs for i in range(run)}


def test_a_video_is_scrubbed_with_keys_slider_and_bars(page, runs):
    page.select_option("#g-task", "t_video")
    at, panel = page.locator("#g-at"), page.locator("#g-panels li").filter(has_text="Random")
    assert at.inner_text() == "all 4"
    assert panel.locator("image").count() == 4
    (result,) = [result for result in collect(runs) if result.method == "random"]
    kept = answers.read(result)["t_video", 0].kept().reshape(4, 5, 5)
    label = panel.locator(".strip").get_attribute("aria-label")
    assert label == f"Tokens kept at each moment: {', '.join(str(int(n)) for n in kept.sum((1, 2)))}"
    page.locator("#g-next").focus()
    for moment in (1, 2, 3):
        page.keyboard.press(".")
        assert at.inner_text() == f"{moment} of 4, from {1.5 * (moment - 1):.1f} s"
        assert panel.locator("image").count() == 1
        faded = panel.locator("path.fade").get_attribute("d")
        assert tokens_in(faded) == {(y, x) for y in range(5) for x in range(5) if not kept[moment - 1, y, x]}
        assert panel.locator(".strip i").nth(moment - 1).get_attribute("class") == "now"
    page.keyboard.press(",")
    assert at.inner_text().startswith("2 of 4")
    panel.locator(".strip i").nth(3).click()
    assert at.inner_text().startswith("4 of 4")
    page.locator("#g-moment").press("Home")
    assert at.inner_text() == "all 4"
    page.locator("#g-moment").press("End")
    page.keyboard.press("ArrowLeft")  # which moves the slider that has the focus
    assert at.inner_text().startswith("3 of 4")
    page.locator("#g-next").click()
    assert at.inner_text() == "all 4"


def test_boxes_lie_on_the_picture_and_videos_controls_are_gone(page):
    page.select_option("#g-task", "t_where")
    assert page.locator("#g-time").is_hidden()
    assert page.locator(".strip").count() == 0
    assert "dashed box: the answer" in page.locator("#g-legend").inner_text()
    panel = page.locator("#g-panels li").filter(has_text="Random")

    def place(kind):
        box = panel.locator(f"rect.{kind}")
        return [float(box.get_attribute(name)) for name in ("x", "y", "width", "height")]

    approx = partial(pytest.approx, abs=1e-6)  # in tokens of the 10 x 10
    assert place("target") == approx([5, 1, 5, 4])
    assert place("found") == approx([3, 2, 7, 8])  # what lies outside of the picture is left out
    assert page.locator("#g-panels li").filter(has_text="Unpruned").locator("rect.found").count() == 0
