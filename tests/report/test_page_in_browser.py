"""The page in a real browser: it sorts, filters and steps, needs no network and, for its tables, no script."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from browser import PHONE, browser, chromium, opened
from PIL import Image
from synthetic_runs import write_run

from harness.core.overrides import compose
from harness.report import images
from harness.report.build import build
from harness.results.result import collect

TASKS = {"t_one": "accuracy,none", "t_two": "accuracy,none", "t_three": "anls,none"}
SKILL = {"random": 0.3, "uniform": 0.35, "greedy": 0.6, "fps": 0.55, "idpruner": 0.7}


expect = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]'").expect


@pytest.fixture(scope="module")
def started():
    if chromium() is None:
        reason = "NO CHROMIUM HERE: the page is not tested in a browser (apt-get install chromium)"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "runs"
    write_run(root, "none", tasks=TASKS)
    for method, skill in SKILL.items():
        for keep in (0.5, 0.25):
            write_run(root, method, keep, skill + 0.1 * (keep > 0.3), tasks=TASKS)
    return root


def illustrated(setting, config, keep):
    """Stands for the data set: a picture of the right size, and the question's number as its text."""
    for question in setting["questions"]:
        place = Image.new("RGB", (280, 280), (90, 140, 200))
        question.update(text=f"What is {question['doc_id']}?", target="yes", pictures=[keep(place)])
    return []


def make(runs, out, monkeypatch, *more):
    monkeypatch.setattr(images, "illustrate", illustrated)
    build(compose("report", [f"runs={runs}", f"out={out}", "questions=8", *more]))
    return out


@pytest.fixture(scope="module")
def file(runs):
    with pytest.MonkeyPatch.context() as patch:
        return make(runs, runs.parent / "report.html", patch)


@pytest.fixture
def page(started, file):
    with opened(started, file) as shown:
        yield shown.page
        assert shown.errors == []
        assert shown.requests == [file.as_uri()]


def column(page, place):
    cells = page.locator(f"table.scores tbody tr:not([hidden]) > :nth-child({place})").all_inner_texts()
    return [text.split("\n")[0].strip() for text in cells]


def test_a_click_on_a_head_sorts_and_says_so(page):
    head = page.locator("table.scores thead th").nth(4)
    for way, sign in (("descending", -1), ("ascending", 1)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == way
        numbers = [float(text.strip("≈ ")) for text in column(page, 5)]
        assert numbers == sorted(numbers, key=lambda it: sign * it)
        assert len(numbers) == 11
    page.locator("table.scores thead th").nth(0).get_by_role("button").press("Enter")
    assert column(page, 1) == sorted(column(page, 1))
    assert page.locator("[aria-sort]").count() == 1


def test_menus_filter_rows_and_columns(page):
    menu = page.locator(".menu[data-key=method]")
    menu.locator("summary").click()
    menu.get_by_role("button", name="none").click()
    assert column(page, 1) == []
    menu.get_by_label("IDPruner").check()
    page.keyboard.press("Escape")
    assert not menu.locator("fieldset").is_visible()
    assert [text.partition(" (")[0] for text in column(page, 1)] == ["IDPruner", "IDPruner"]
    assert menu.locator("summary").inner_text() == "Method: IDPruner"
    assert page.locator("#shown").inner_text() == "2 of 11 rows"
    budget = page.locator(".menu[data-key=budget]")
    budget.locator("summary").click()
    budget.get_by_label("keep=0.5").uncheck()
    assert column(page, 3) == ["keep=0.25"]
    benchmark = page.locator(".menu[data-key=benchmark]")
    benchmark.locator("summary").click()
    benchmark.get_by_label("two").uncheck()
    assert page.locator("table.scores thead th:visible").count() == 7
    model = page.locator(".menu[data-key=model]")
    model.locator("summary").click()
    model.get_by_label("m", exact=True).uncheck()
    assert column(page, 1) == []


def test_cells_show_shares_scores_or_flips(page):
    row = page.locator("table.scores tbody tr[data-method=random]").first.locator("td").nth(4)
    assert re.fullmatch(r"(≈[^\d]*)?\d+\.\d\n\d+\.\d–\d+\.\d", row.inner_text().strip())
    page.get_by_label("score", exact=True).check(force=True)
    assert re.fullmatch(r"\d\d\.\d\d\n± \d+\.\d\d", row.inner_text().strip())
    page.get_by_label("lost / gained").check(force=True)
    assert re.fullmatch(r"\d+ / 0", row.inner_text().strip())  # the unpruned model knows everything here


def place(page):
    return page.locator("#g-place").inner_text()


def test_buttons_and_keys_step(page):
    page.locator("#gallery").scroll_into_view_if_needed()
    assert place(page) == "1 of 24"
    assert page.locator("#g-back").is_disabled()
    first = page.locator("#g-asked").inner_text()
    page.locator("#g-next").click()
    assert place(page) == "2 of 24"
    assert page.locator("#g-asked").inner_text() != first
    page.locator("#g-next").press("ArrowRight")
    assert place(page) == "3 of 24"
    page.locator("#g-task").focus()
    page.keyboard.press("ArrowLeft")  # which belongs to the list that has the focus
    assert place(page) in ("3 of 24", "1 of 24")
    page.locator("#g-back").click()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert place(page) == "24 of 24"
    assert page.locator("#g-next").is_disabled()
    page.select_option("#g-task", "t_two")
    assert place(page) == "1 of 8"


def scores(runs, method, keep):
    (found,) = [r for r in collect(runs) if r.method == method and r.about["config"]["keep"] == keep]
    return {
        (task, doc): each[TASKS[task]][row]
        for task, each in json.loads((found.folder / "scores.json").read_text()).items()
        for row, doc in enumerate(each["doc_id"])
    }


def test_only_where_a_is_right_and_b_is_wrong(page, runs):
    page.select_option("#g-budget", "keep=0.25")
    page.select_option("#g-a", label="FPS")
    page.select_option("#g-b", label="Random")
    page.locator("#g-differ").check()
    a, b = scores(runs, "fps", 0.25), scores(runs, "random", 0.25)
    shown = page.evaluate("state.list.map((it) => [it.task, it.doc_id])")
    there = page.evaluate("setting().chunks.flatMap((it) => it.questions.map((q) => [q.task, q.doc_id]))")
    assert shown
    assert shown == [name for name in there if a[tuple(name)] >= 0.5 > b[tuple(name)]]
    panels = page.locator("#g-panels li")
    assert panels.nth(0).inner_text().startswith("A: FPS\n✓ right: yes")
    assert panels.nth(1).inner_text().startswith("B: Random\n✗ wrong: no")
    assert panels.count() == 6  # the unpruned model, and five methods at this budget
    page.select_option("#g-a", label="Random")
    page.select_option("#g-b", label="Unpruned")
    assert place(page) == "none"
    assert "no question that A answers right" in page.locator("#g-asked").inner_text()


def test_what_is_faded_is_what_was_dropped(page, runs):
    page.select_option("#g-budget", "keep=0.25")
    page.select_option("#g-b", label="Greedy")
    (result,) = [r for r in collect(runs) if r.method == "greedy" and r.about["config"]["keep"] == 0.25]
    lines = [json.loads(line) for line in (result.folder / "kept.jsonl").read_text().splitlines()]
    kept = {(line["task"], line["doc_id"]): set(line["kept"]) for line in lines}
    for _ in range(3):
        name = tuple(page.evaluate("[state.list[state.place].task, state.list[state.place].doc_id]"))
        path = page.locator("#g-panels li").nth(1).locator("path.fade").get_attribute("d")
        squares = [tuple(map(int, found)) for found in re.findall(r"M(\d+) (\d+)h(\d+)v1", path)]
        faded = {10 * y + x + i for x, y, run in squares for i in range(run)}
        assert faded == set(range(100)) - kept[name]
        page.locator("#g-next").click()


def test_every_panel_and_control_has_a_name(page):
    nameless = """() => [...document.querySelectorAll("input, select, button, svg, table, [role=region]")]
        .filter((it) => !(it.labels?.length || it.getAttribute("aria-label") || it.textContent.trim()))
        .map((it) => it.outerHTML.slice(0, 90))"""
    assert page.evaluate(nameless) == []
    assert page.locator("th:not([scope])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((it) => it.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_the_theme_follows_the_system_and_a_button(started, file):
    shade = "getComputedStyle(document.documentElement).backgroundColor"
    with opened(started, file) as light, opened(started, file, scheme="dark") as dark:
        bright, dim = light.page.evaluate(shade), dark.page.evaluate(shade)
        assert bright != dim
        light.page.locator("#theme").click(click_count=2, delay=20)
        assert light.page.locator("#theme").inner_text() == "Theme: dark"
        assert light.page.evaluate(shade) == dim


def test_without_scripts_the_tables_stand(started, file):
    with opened(started, file, scripts=False) as shown:
        page = shown.page
        assert page.locator("table.scores tbody tr").count() == 11
        assert page.get_by_text("Stepping through pictures needs JavaScript").is_visible()
        assert page.locator(".menu, #viewer, #theme").evaluate_all("them => them.every((it) => it.hidden)")
        assert page.locator("table.scores tbody td").first.is_visible()
        assert page.locator(".drawing svg").first.is_visible()
        assert shown.errors == []


def test_a_phone_scrolls_tables_not_the_page(started, file):
    with opened(started, file, PHONE, has_touch=True) as shown:
        page = shown.page
        page.evaluate("document.querySelectorAll('details.plot, details.more').forEach((it) => (it.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        for menu in page.locator(".menu").all():
            menu.locator("summary").click()
            box = menu.locator("fieldset").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE[0]


def test_a_large_gallery_lies_beside_the_page(started, runs, tmp_path, monkeypatch):
    out = make(runs, tmp_path / "large.html", monkeypatch, "gallery=all")
    assert list((tmp_path / "large_files").glob("*.webp"))
    with opened(started, out) as shown:
        page = shown.page
        expect(page.locator("#g-place")).to_have_text("1 of 20")
        page.select_option("#g-task", "t_three")
        expect(page.locator("#g-asked")).to_contain_text("three, question 0")
        expect(page.locator("#g-place")).to_have_text("1 of 20")
        assert shown.errors == []
        assert all(address.startswith(tmp_path.as_uri()) for address in shown.requests)
        (tmp_path / "large_files" / "0-t_two.js").unlink()
        page.select_option("#g-task", "t_two")
        page.get_by_text("is missing: keep its folder next to the page").wait_for()


def test_the_pictures_of_the_readme_can_be_taken(started, file, tmp_path):
    call = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "browser.py"), str(file), str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    made = [Path(line) for line in done.stdout.splitlines()]
    assert len(made) == 2
    for shot in made:
        pixels = np.asarray(Image.open(shot).convert("L"), dtype=float)
        assert pixels.std() > 5
        assert shot.stat().st_size < 300_000


def best_in_table(page, column):
    """Name and percent of the first bold cell of each budget, as the table has them."""
    rows = page.locator("table.scores tbody tr")
    found = {}
    for row in rows.all():
        cell = row.locator("> *").nth(column)
        if cell.locator(".best").count():
            found.setdefault(row.get_attribute("data-budget"), (row.get_attribute("data-name"), cell))
    return {budget: (name, cell.locator(".best").inner_text()) for budget, (name, cell) in found.items()}


def test_the_first_view_says_which_method_at_what_budget(page):
    """In words and in the picture, of the benchmark that is chosen; the keyboard is enough."""
    for benchmark, column in (("", 4), ("t_two", 6)):
        select = page.locator("#c-benchmark")
        select.focus()
        while select.input_value() != benchmark:
            page.keyboard.press("ArrowDown")
        said = page.locator("#c-answer li").all_inner_texts()
        best = best_in_table(page, column)
        assert {text.split(":")[0] for text in said} == set(best) == {"keep=0.5", "keep=0.25"}
        for text in said:
            name, percent = best[text.split(":")[0]]
            assert re.match(rf"keep=[\d.]+: {name} {float(percent):g} %", text)
            assert name in page.locator("#c-figure text").all_text_contents()
        assert page.locator("#c-figure circle").count() == 2 * len(SKILL)
    assert page.locator("section").first.get_attribute("id") == "choose"


def test_of_untested_rows_none_is_said_to_be_worse(page):
    page.evaluate("document.querySelectorAll('.rel .ci').forEach((cell) => (cell.textContent = 'untested'))")
    page.locator("#c-benchmark").dispatch_event("change")
    for text in page.locator("#c-answer li").all_inner_texts():
        assert "; untested, so none of the others is known to be worse: " in text


def test_a_link_opens_a_question(started, file, page):
    page.locator("#g-next").click()
    page.locator("#g-next").click()
    asked = page.locator("#g-asked .question").inner_text()
    fragment = page.locator("#g-link").get_attribute("href")
    with opened(started, Path(f"{file}")) as other:
        other.page.goto(file.as_uri() + fragment)
        other.page.reload()
        expect(other.page.locator("#g-asked .question")).to_have_text(asked)
        expect(other.page.locator("#viewer")).to_be_in_viewport()
        other.page.goto(file.as_uri() + "#q/nothing/%E0%A4%A/x/1")
        expect(other.page.locator("#g-asked .question")).to_have_text(asked)
        assert other.errors == []
