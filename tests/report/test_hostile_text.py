"""Text of a run is text in everything that is made of it: nothing runs, computes, or moves a cursor."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from functools import partial
from types import SimpleNamespace

import hostile
import pandas as pd
import pytest
from browser import browser, chromium, opened
from hostile import ALL, TASKS, TEXTS
from markdown_it import MarkdownIt
from PIL import Image

from harness import compare, export, status, tables
from harness.core import escape
from harness.core.escape import visible
from harness.core.overrides import compose
from harness.report import __main__ as report
from harness.report import images
from harness.results import plots
from harness.results.result import collect

SPY = """window.ran = () => (window.hacked = true);
document.addEventListener("securitypolicyviolation", (event) => console.error("refused", event.violatedDirective));"""
# What only an injection brings in: none of our pages has these.
ALIEN = "img, iframe, object, embed, form, base, link:not([rel=icon]), [href^='javascript'], [style]"
HANDLERS = "[...document.querySelectorAll('*')].flatMap((it) => it.getAttributeNames()).filter((it) => /^on/.test(it))"


def illustrated(setting, config, keep):
    """Stands for a hostile data set."""
    for question in setting["questions"]:
        picture = Image.new("RGB", (28, 28), (90, 140, 200))
        question.update(text=ALL, target=ALL, pictures=[keep(picture)])
    return [ALL]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every file that commands make of hostile runs, and what each of them prints."""
    out = tmp_path_factory.mktemp("hostile")
    runs = hostile.write_runs(out / "runs")
    folders = [result.folder for result in collect(runs)]
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "illustrate", illustrated)
        patch.setattr(plots, "save", partial(plots.save, formats=("svg",)))
        for name, main, *overrides in (
            ("report", report.main, f"out={out / 'page.html'}", f"plots={out / 'plots'}"),
            ("report", report.main, f"out={out / 'large.html'}", "gallery=all"),
            ("tables", tables.main, f"out={out / 'tables'}", f"stats={out / 'stats.csv'}", "errors=true"),
            ("compare", compare.main, f"a={folders[0]}", f"b={folders[1]}", f"csv={out / 'compare.csv'}"),
            ("export", export.main, f"out={out / 'export'}"),
            ("status", status.main),
        ):
            cfg = compose(name, [*([] if name == "compare" else [f"runs={runs}"]), *overrides])
            lines = []
            patch.setattr("builtins.print", lambda *texts, lines=lines, **_: lines.append(" ".join(map(str, texts))))
            main(cfg)
            said[name] = lines
    return SimpleNamespace(out=out, runs=runs, said=said)


@pytest.fixture(scope="module")
def started():
    if chromium() is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    with browser() as running:
        yield running


def watched(started, file):
    return opened(started, file, spy=SPY)


def is_clean(shown, file):
    """Nothing ran, nothing was refused, nothing was loaded, and no element or handler came from a text."""
    page = shown.page
    assert page.evaluate("window.hacked") is None
    assert shown.errors == []
    assert shown.requests == [file.as_uri()]
    assert page.evaluate(HANDLERS) == []
    return True


def test_the_report_shows_texts_and_runs_none(made, started):
    file = made.out / "page.html"
    with watched(started, file) as shown:
        page = shown.page
        page.evaluate("document.querySelectorAll('details').forEach((it) => (it.open = true))")
        rows = page.locator("table.scores tbody th").evaluate_all("them => them.map((it) => it.textContent)")
        for text in TEXTS:
            assert any(visible(text).strip() in row for row in rows), text
        assert visible(ALL) in page.locator("#provenance").inner_text()
        for layer in ("order", "importance", "kept"):
            page.locator(f"input[value={layer}]").check(force=True)
        page.locator("#g-next").click()
        assert visible(ALL, "\n\t") in page.locator("#g-asked .question").text_content()
        assert visible(ALL, "\n\t") in page.locator("#g-panels .said").first.text_content()
        assert page.locator("script").count() == 2
        assert is_clean(shown, file)


def test_elements_of_the_report_are_its_own(made, started):
    file = made.out / "page.html"
    with opened(started, file, scripts=False) as shown:
        assert shown.page.locator(ALIEN).count() == 0


def test_a_large_gallery_loads_its_own_files_only(made, started):
    file = made.out / "large.html"
    with watched(started, file) as shown:
        page = shown.page
        page.locator("#g-panels .said").first.wait_for()
        for task in TASKS:
            page.select_option("#g-task", index=list(TASKS).index(task))
        assert visible(ALL, "\n\t") in page.locator("#g-asked .question").text_content()
        assert page.evaluate("window.hacked") is None
        assert shown.errors == []
        inside = (made.out / "large_files").as_uri()
        assert all(address.startswith(inside) for address in shown.requests[1:])


def test_pages_of_tables_and_plots_run_nothing(made, started):
    (table,) = (made.out / "tables").glob("*.html")
    for file in (table, *(made.out / "plots").glob("*.svg")):
        with watched(started, file) as shown:
            assert shown.page.locator("script").count() == 0
            assert is_clean(shown, file)


INJECTED = ["<script>ran()</script>", "<img src=x onerror=ran()>", "<b style='color:red'>x</b>"]


@pytest.mark.parametrize("injected", INJECTED)
@pytest.mark.parametrize("name", ["page.html", "tables"])
def test_the_policy_refuses_what_would_get_through(made, started, tmp_path, name, injected):
    (file,) = [made.out / name] if name == "page.html" else (made.out / name).glob("*.html")
    text = re.sub("<(h1|caption)>", lambda head: f"<{head[1]}>{injected}", file.read_text(encoding="utf-8"), count=1)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    with watched(started, tmp_path / "page.html") as shown:
        assert shown.page.evaluate("window.hacked") is None
        assert any("refused" in line for line in shown.errors)


def cells(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return [cell for row in csv.reader(stream) for cell in row]


def test_no_cell_of_a_csv_file_is_a_formula(made):
    (table,) = (made.out / "tables").glob("*.csv")
    files = [table, made.out / "stats.csv", made.out / "compare.csv", made.out / "export" / "leaderboard.csv"]
    for file in files:
        texts = cells(file)
        computed = [text for text in texts if text[:1] in tuple("=+-@\t\r")]
        assert [text for text in computed if not re.fullmatch(r"[+-]?[\d.e+-]+", text)] == []
        assert all(text.isprintable() for text in texts)
    assert {visible(text) for text in TEXTS} <= {escape.text_of(text).partition(" (")[0] for text in cells(table)}


def test_numbers_of_a_csv_file_are_numbers():
    columns = {"-a": [-1.5, 2.0], "b": ["-0.52", "+1e-3"], "c": ["-1+1", "'=x"], "d": pd.array([1, None], "Int64")}
    frame = pd.DataFrame(columns)
    text = escape.csv(frame)
    assert text == "'-a,b,c,d\n-1.5,-0.52,'-1+1,1\n2.0,+1e-3,''=x,\n"
    assert [escape.text_of(cell) for cell in ("'-1+1", "''=x", "'tis", "-1.5")] == ["-1+1", "'=x", "'tis", "-1.5"]


def test_markdown_holds_no_markup_but_ours(made):
    (file,) = (made.out / "tables").glob("*.md")
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for text in (file.read_text(encoding="utf-8"), (made.out / "export" / "README.md").read_text(encoding="utf-8")):
        tokens = parser.parse(text.removeprefix("---").partition("---\n\n")[2] if text.startswith("---") else text)
        inline = [child for token in tokens if token.children for child in token.children]
        html = {token.content for token in [*tokens, *inline] if token.type.startswith("html")}
        assert html <= {"<ins>", "</ins>"}
        assert not {"link_open", "image", "s_open", "fence", "heading_open"} & {token.type for token in inline}
    tokens = parser.parse(file.read_text(encoding="utf-8"))
    shown = ["".join(child.content for child in token.children) for token in tokens if token.children]
    for text in TEXTS:
        assert any(visible(text) in cell for cell in shown), text


def test_latex_holds_no_command_of_a_text(made):
    (file,) = (made.out / "tables").glob("*.tex")
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = [line for line in lines if line.endswith(r" \\") and "multicolumn" not in line]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    commands = set(re.findall(r"\\[a-z]+", "\n".join(rows)))
    ours = {r"\textbackslash", r"\textasciitilde", r"\textasciicircum", r"\textbf", r"\underline", r"\rlap", r"\smash"}
    assert commands <= ours | {r"\textsuperscript", r"\approx", r"\pm", r"\lambda", r"\dots"}
    assert not any(re.search(r"(?<!\\)[%#]|^\s*[\[*]", row) for row in rows)
    assert any(escape.latex(TEXTS[11]) in row for row in rows)


def test_drawings_have_the_names_as_text(made):
    texts = set()
    for file in (made.out / "plots").glob("*.svg"):
        root = ET.parse(file).getroot()
        assert {"script", "image", "a", "foreignObject"}.isdisjoint(node.tag.rpartition("}")[2] for node in root.iter())
        texts |= {node.text for node in root.iter() if node.tag.endswith("}text")}
    for text in TEXTS:
        assert any(visible(text).strip()[:38] in shown for shown in texts if shown), text


def test_screens_show_control_characters(made):
    assert set(made.said) == {"report", "tables", "compare", "export", "status"}
    for name, said in made.said.items():
        assert all(line.isprintable() for block in said for line in block.split("\n")), name
        assert json.loads(said[-1])
    assert visible(TEXTS[13]) in "\n".join(made.said["status"] + made.said["compare"])


def test_what_is_visible_stays_as_it_is():
    for text in ("naïve café", "中文 日本語", "👩‍👩‍👧 क्‍ष", "a\u00a0b\u3000c", "−±≈λ…", r"C:\new"):
        assert visible(text) == text
    assert visible("\ud800\u202e\n") == r"\ud800\u202e\n"
    assert visible("a\n\x1b", keep="\n") == "a\n\\x1b"
    for name in ("mmbench_en", "fastv*", "idpruner* (seed 1)", "keep=0.25", "+1.25", "p < 0.05", "R&D"):
        assert escape.markdown(name) == name
