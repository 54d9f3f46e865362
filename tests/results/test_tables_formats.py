"""One data frame, four formats: the same cells, the same marks; and the LaTeX compiles."""

import re
import shutil
import subprocess
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from harness.core.escape import latex as tex
from harness.results.benchmarks import percent_scale, titles
from harness.results.formats import INSIDE, head, heading, html, markdown, page, sheet
from harness.results.frames import read_scores
from harness.results.latex import SAME, latex
from harness.results.table import in_percent, marks, tables_of

SCORES = """method,benchmark,score,budget
baseline,p_one,80,
baseline,p_two,50.5,
random,p_one,20,keep=0.5
random,p_two,40,keep=0.5
dart,p_one,60,keep=0.5
dart,p_two,40,keep=0.5
idpruner,p_one,60,keep=0.5
idpruner,p_two,30,keep=0.5
a_b&c%,p_one,59,keep=0.5
a_b&c%,p_two,10,keep=0.5
dart,p_one,5,tokens=64
dart,p_two,5,tokens=64
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "some.csv").write_text(SCORES)
    (found,) = tables_of(read_scores(tmp_path / "some.csv"))
    found.frame["as_best"] = ["", "p_one avg", "", "", "", ""]
    return found


class Cells(HTMLParser):
    """Rows of a <table> as text, with <b>, <u> and the mark of the like."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in ("b", "u", "small", "caption", "li"):
            self.tags.append(tag)

    def handle_endtag(self, tag):
        if self.tags and tag == self.tags[-1]:
            self.tags.pop()

    def handle_data(self, data):
        if self.rows and self.rows[-1] and data.strip() and not {"caption", "li", "small"} & set(self.tags):
            self.rows[-1][-1] += "".join(self.tags) + data


def cells_of_markdown(text):
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    plain = [[re.sub(r"\*\*(.*?)\*\*", r"b\1", cell) for cell in row] for row in rows]
    return [[re.sub(r"<ins>(.*?)</ins>", r"u\1", c).replace(" ≈", "≈").strip() for c in row] for row in plain[2:]]


def cells_of_latex(text):
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    rows = [line.rstrip("\\ ").split(" & ") for line in body.splitlines() if " & " in line]
    found = []
    for row in rows:
        plain = [re.sub(r"\\textbf\{(.*?)\}", r"b\1", cell.strip()) for cell in row]
        plain = [re.sub(r"\\underline\{(.*?)\}", r"u\1", cell) for cell in plain]
        found.append([c.replace(SAME, "≈").replace("\\", "") for c in plain])
    return found


EXPECTED = [
    ["", "Unpruned", "80", "50.5", "100.00"],
    ["Control", "Random", "20≈", "b40.0", "52.10≈"],
    ["Diversity", "DART", "b60", "b40.0", "b77.10"],
    ["Hybrid", "IDPruner", "b60", "u30.0", "u67.20"],
    ["Other", "a_b&c%", "u59", "10.0", "46.78"],
    ["Diversity", "DART", "5", "5.0", "8.08"],
]


def test_every_format_has_the_same_cells_and_marks(table):
    of_html = [row for row in Cells(html(table)).rows[1:] if len(row) > 1]
    of_markdown = [row for row in cells_of_markdown(markdown(table)) if any(row[1:])]
    assert of_html == [[*keys, avg, *scores] for *keys, avg, scores in ((*r[:2], r[4], r[2:4]) for r in EXPECTED)]
    assert [[c or "" for c in row] for row in of_markdown] == EXPECTED
    assert cells_of_latex(latex(table)) == EXPECTED


def test_the_csv_has_the_same_numbers(table):
    frame = sheet([table])
    plain = [[re.sub("[≈bu]", "", cell) for cell in row[2:]] for row in EXPECTED]
    assert frame[["p_one", "p_two", "avg"]].to_numpy().tolist() == plain
    assert frame["as_best"].tolist() == ["", "p_one avg", "", "", "", ""]


def of_shares(tmp_path):
    """A table of a share, of a score of 2000 and of CIDEr, which may exceed 1."""
    rows = ["baseline,pope,0.8612,,pope_accuracy", "baseline,mme,1463.2,,mme_perception_score"]
    rows += ["baseline,coco,0.9,,coco_CIDEr", "fps,pope,0.5,keep=0.5,pope_accuracy"]
    rows += ["fps,mme,900,keep=0.5,mme_perception_score", "fps,coco,0.45,keep=0.5,coco_CIDEr"]
    (tmp_path / "shares.csv").write_text("method,benchmark,score,budget,metric\n" + "\n".join(rows))
    (table,) = tables_of(read_scores(tmp_path / "shares.csv"))
    errors = {"pope": [0.012, 0.02], "mme": [20.0, 30.0], "coco": [0.01, 0.02], "avg": float("nan")}
    return replace(table, errors=table.frame[table.columns].assign(**errors))


def test_shares_are_printed_in_percent_under_printed_names_and_stay_as_they_are_in_the_csv(tmp_path):
    table = of_shares(tmp_path)
    heads = [("POPE", "pope_accuracy, %"), ("MME", "mme_perception_score"), ("coco", "coco_CIDEr")]
    assert head(in_percent(table))[2:5] == heads
    for text in (markdown(table), html(table)):
        assert all(cell in text for cell in ("86.12 ± 1.20", "1463.2 ± 20.0", "0.9000 ± 0.0100", "50.00 ± 2.00"))
    assert r"86.12$_{\pm1.20}$" in latex(table)
    assert sheet([table])["pope"].tolist() == ["0.8612", "0.5000"]


def test_which_metrics_are_shares():
    assert percent_scale("vinoground", "vinoground_score[2]", [0.4, 0.2]) == 1  # of 100, by conf/tables/paper.yaml
    assert percent_scale("other", "accuracy", [0.4, float("nan")]) == 100
    assert percent_scale("other", "accuracy", [1.4, 0.4]) == 1
    assert percent_scale("other", "accuracy", [float("nan")]) == 1


def test_benchmarks_with_one_printed_name_keep_their_own():
    tasks = ["mmbench_en_dev", "mmbench_en_dev_static", "textvqa_val"]
    assert list(titles(tasks).values()) == ["mmbench en dev", "mmbench en dev static", "TextVQA"]
    assert titles(["pocket_text", "pocket_charts"]) == {"pocket_text": "text", "pocket_charts": "charts"}


def test_ties_share_a_mark_and_a_row_alone_has_none(table):
    found = marks(table)
    assert found["p_one"].tolist() == ["", "", "best", "best", "second", ""]
    assert found["p_two"].tolist() == ["", "best", "best", "second", "", ""]


def test_what_looks_equal_is_equal(table):
    """Marks go by the digits that are shown."""
    table.frame["avg"] = [100.0, 50.001, 50.004, 49.0, 48.0, 1.0]
    assert marks(table)["avg"].tolist() == ["", "best", "best", "second", "", ""]


def test_names_lose_what_all_begin_with(table):
    assert [name for name, _ in table.titles.values()] == ["one", "two"]


def test_headings():
    assert heading("keep=0.10") == "10 % of visual tokens kept"
    assert heading("tokens=64") == "64 visual tokens kept"
    assert heading("half") == "half"


def test_text_that_latex_would_read(table):
    assert tex("a_b & 50 % ~^\\ {x} #1 $") == (
        r"a\_b \& 50 \% \textasciitilde{}\textasciicircum{}\textbackslash{} \{x\} \#1 \$"
    )


def test_html_is_escaped_and_has_scopes(table):
    table.frame.loc[4, "label"] = "<script>x</script>"
    text = page([html(table)], "<t>")
    assert "<script>" not in text
    assert '<th scope="row">' in text
    assert '<th scope="col" class="key">Group<' in text
    assert "<title>&lt;t&gt;</title>" in text


def test_missing_cells_are_dashes_in_every_format(table):
    table.frame.loc[1, "p_two"] = float("nan")
    table.frame.loc[1, "avg"] = float("nan")
    for text, dash in ((markdown(table), " – "), (html(table), "<td>–</td>"), (latex(table), " -- ")):
        assert text.count(dash) >= 2
    assert sheet([table])["p_two"].tolist()[1] == ""
    assert isinstance(sheet([table]), pd.DataFrame)


LANDSCAPE = "\\usepackage[landscape,margin=5mm]{geometry}\n\\usepackage{booktabs}\n\\AtBeginDocument{\\tiny}\n"


def compiles(folder, body, preamble=LANDSCAPE):
    text = f"\\documentclass{{article}}\n{preamble}\\begin{{document}}\n{body}\n\\end{{document}}\n"
    (folder / "t.tex").write_text(text)
    call = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode, done.stdout


@pytest.fixture
def pdflatex():
    if shutil.which("pdflatex") is None:
        warnings.warn(
            "NO LATEX WAS COMPILED: pdflatex is not installed (apt-get install texlive-latex-base)", stacklevel=1
        )
        pytest.skip("pdflatex is not installed (apt-get install texlive-latex-base texlive-latex-recommended)")


def test_latex_compiles(table, tmp_path, pdflatex):
    behind = {"low": 1.0, "high": 2.0, "lost": 3, "gained": 4, "agreement": 50.0, "kept": 25.0, "per_layer": 25.5}
    table = replace(table, frame=table.frame.assign(**behind))
    code, log = compiles(tmp_path, latex(table))
    assert code == 0, log[-2000:]
    assert "Overfull" not in log
    assert (tmp_path / "t.pdf").is_file()


def test_a_float_with_errors_fits_a_page_and_has_its_legend_in_the_caption(table, tmp_path, pdflatex):
    """Of twelve benchmarks and a hundred rows, on a page with the margins of the class."""
    frame = pd.concat([table.frame, *[table.frame.iloc[1:].assign(budget=f"tokens={k}") for k in range(65, 85)]])
    frame = frame.reset_index(drop=True)
    more = {f"more_{place}": frame["p_one"] for place in range(10)}
    frame = frame.assign(**more, low=1.0, high=2.0, lost=3, gained=4)
    benchmarks = [*table.benchmarks, *more]
    wide = replace(
        table,
        caption="m on suite & more, 20 questions, lmms-eval 0.7.3",
        frame=frame,
        benchmarks=benchmarks,
        titles={b: (b, "accuracy") for b in benchmarks},
        digits={**dict.fromkeys(benchmarks, 2), "avg": 2},
        errors=pd.DataFrame(1.25, index=frame.index, columns=[*benchmarks, "avg"]),
    )
    text = latex(wide, is_float=True)
    caption = text[text.index(r"\caption") : text.index(r"\label")]
    assert all(part in caption for part in (r"m on suite \& more", "Bold: best of the rows with this budget", "0.7.3"))
    assert "Lost" not in text
    code, log = compiles(tmp_path, f"Text.\n{text}", "\\usepackage{booktabs,graphicx}\n")
    assert code == 0, log[-2000:]
    assert "Overfull" not in log
    assert "Float too large" not in log
    assert "(2 pages" in log  # the text, and the float


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6, 7])
def test_the_paper_tables_compile(number, tmp_path, pdflatex):
    file = Path(__file__).parents[2] / "results" / "paper" / f"table{number}.tex"
    code, log = compiles(tmp_path, file.read_text())
    assert code == 0, log[-2000:]
    assert "Overfull" not in log


def test_rows_that_cut_inside_the_language_model_end_their_block_under_a_heading(table):
    table.frame["K"], table.frame["per_layer"] = 10.0, [100.0, 10.0, 40.0, 10.0, 10.0, 40.0]
    inside = f"*{INSIDE}*"
    found = [row[0] if row[0].startswith("*") else row[1] for row in cells_of_markdown(markdown(table))]
    assert found == [
        *("Unpruned", "*50 % of visual tokens kept*", "Random", "IDPruner", "a_b&c%", inside, "DART*"),
        *("*64 visual tokens kept*", inside, "DART*"),
    ]
