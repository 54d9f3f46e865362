"""Tables as CSV, Markdown and HTML, and the cells and marks that all formats share."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from harness.core import escape
from harness.results.labels import is_inside
from harness.results.method_groups import BASELINE, title_of
from harness.results.table import AVERAGE, Table, in_percent, known_groups, marks, records
from harness.results.web import StyleSheet, policy

LEADING = ["model", "tasks", "budget", "group", "method", "lambda", "source"]
OF_RUNS = ["questions", "failed", "setting", "hash", "K", "kept", "per_layer"]
TRAILING = ["low", "high", "lost", "gained", "agreement", "seeds", "seed_sd", "as_best", "untested"]
DIGITS = {"low": 2, "high": 2, "agreement": 2, "lost": 0, "gained": 0, "seeds": 0, "seed_sd": 2}
UNTESTED = "†"
DASH = "–"
LEGEND = {
    "best": "bold: best of the rows with this budget",
    "second": "underlined: second best",
    "inside": "*: a layer sees more than K tokens on average (per layer); ranked among rows of equal computation",
    "same": "≈: not significantly different from the best (5 % level, corrected for the number of rows)",
    "untested": f"{UNTESTED}: untested, so without interval and marks",
}
INSIDE = "cut inside the language model, whose first layers read every token: more computation than the rows above"
OF_DIFFERENCE = ("low", "lost", "gained", "agreement")  # relative to the unpruned model, so empty in its own row
STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }
body { margin: 1.5rem } div { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0 }
caption { text-align: left; font-weight: 600; padding: .4rem 0 } th, td { padding: .2rem .6rem; text-align: right }
th[scope=row], th[scope=rowgroup], .key { text-align: left } td, th { white-space: nowrap; vertical-align: top }
th[scope=row], th[scope=rowgroup] { font-weight: normal } thead { border-block: 2px solid }
sup { position: absolute; line-height: 1.2 } /* takes no room: numbers stay below each other */
th[scope=rowgroup] { font-style: italic; border-top: 1px solid } thead small { font-weight: normal; display: block }
table { border-bottom: 2px solid }
"""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the mark "best", "second" or "", whether it is marked as equal to the best, its error."""

    text: str
    mark: str = ""
    same: bool = False
    error: str = ""

    def __str__(self) -> str:
        return self.text + f" ± {self.error}" * bool(self.error)


@dataclass(frozen=True)
class Line:
    """A row of a table, or a heading within it; `rule` is true where a group begins."""

    cells: list[Cell]
    heading: str = ""
    rule: bool = False


def head(table: Table, without: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return name and unit of every column; `without` names columns after the average that are left out."""
    keys = [(name, "") for name in keys_of(table).values()]
    titles = {**table.titles, AVERAGE: ("Avg", "% of unpruned")}
    marked = {column: UNTESTED * (column in table.untested) for column in table.columns}
    scores = [(titles[column][0] + mark, titles[column][1]) for column, mark in marked.items()]
    return [*keys, *scores, *_extra(table, without).values()]


def lines(table: Table, without: Collection[str] = ()) -> Iterator[Line]:
    """Yield the table row by row, the unpruned model first and a heading before every block.

    Rows that cut inside the language model end their block, under a heading of their own.
    """
    marks_of = marks(table)
    keys, extra = keys_of(table), _extra(table, without)
    previous: dict[str, Any] = {}
    for place, row in _inside_last(table.frame):
        block = {key: row[key] for key in ("setting", "budget")}
        new = bool(previous) and block != {key: previous[key] for key in block}
        if row["method"] != BASELINE and (new or not previous):
            yield Line([], heading=heading(str(row["budget"])))
        if "source" not in row and _is_inside(row) and (new or not _is_inside(previous)):
            yield Line([], heading=INSIDE)
            previous["group"] = ""
        rule = bool(previous) and not new and row["group"] != previous["group"]
        repeated = not new and previous.get("group") == row["group"]
        cells = [Cell(_key(key, row, repeated and key == "group", table.settings)) for key in keys]
        same = set(str(row.get("as_best") or "").split())
        for column in table.columns:
            text = _number(row[column], table.digits[column], signed=row.get("source") == "difference")
            error = None if table.errors is None else table.errors.loc[place, column]
            shown_error = "" if pd.isna(error) else f"{error:.{table.digits[column]}f}"
            cells.append(Cell(text, str(marks_of.loc[place, column]), column in same and text != DASH, shown_error))
        yield Line([*cells, *(Cell(_extra_text(key, row)) for key in extra)], rule=rule)
        previous = {**row, **block}


def _inside_last(frame: pd.DataFrame) -> list[tuple[Any, dict[str, Any]]]:
    """Return index and row; of each block, rows that cut inside the language model last.

    Where ours stand beside published rows, which do not say how many tokens a layer saw, the order stays.
    """
    rows = list(zip(frame.index, records(frame), strict=True))
    if "source" in frame:
        return rows
    blocks = list(dict.fromkeys((row["setting"], row["budget"]) for _, row in rows))
    return sorted(rows, key=lambda item: (blocks.index((item[1]["setting"], item[1]["budget"])), _is_inside(item[1])))


def heading(budget: str) -> str:
    """Return the budget of a block in words."""
    kind, _, number = budget.partition("=")
    try:
        if kind == "keep":
            return f"{100 * float(number):g} % of visual tokens kept"
        scope = {"tokens": "", "per_tile": " of each tile"}.get(kind)
        return budget if scope is None else f"{int(number)} visual tokens{scope} kept"
    except ValueError:
        return budget


def keys_of(table: Table) -> dict[str, str]:
    """Return the columns before the scores, and their titles."""
    frame = table.frame
    titles = {"setting": "Setting"} if frame["setting"].nunique() > 1 else {}
    titles |= {"group": "Group"} if known_groups(frame) else {}
    titles |= {"label": "Method"}
    titles |= {"lambda": "λ"} if frame["lambda"].notna().any() else {}
    titles |= {"source": ""} if "source" in frame else {}
    return titles


def _is_inside(row: Mapping[str, Any]) -> bool:
    return is_inside(row.get("K"), row.get("per_layer")) and row.get("method") != BASELINE


def _key(key: str, row: Mapping[str, Any], repeated: bool, settings: Mapping[str, str]) -> str:
    if key == "lambda":
        return "" if pd.isna(row[key]) else f"{row[key]:g}"
    if key == "label":
        name, separator, suffix = str(row["label"]).partition(" (")
        return title_of(name) + "*" * _is_inside(row) + separator + suffix
    if key == "setting":
        return settings.get(str(row[key]), str(row[key]))
    return "" if repeated else str(row[key]).capitalize() if key == "group" else str(row[key])


def _extra(table: Table, without: Collection[str] = ()) -> dict[str, tuple[str, str]]:
    """Return the columns after the average that are not empty, with titles and units."""
    titles = {
        "low": ("Interval of avg", "95 %"),
        "lost": ("Lost", "questions"),
        "gained": ("Gained", "questions"),
        "agreement": ("Agrees", "% of answers"),
        "failed": ("Failed", "questions"),
        "kept": ("Kept", "tokens"),
        "per_layer": ("Per layer", "tokens"),
    }
    shown = [key for key in titles if key not in without and key in table.frame and table.frame[key].notna().any()]
    return {key: titles[key] for key in shown}


def _extra_text(key: str, row: Mapping[str, Any]) -> str:
    if row["method"] == BASELINE and key in OF_DIFFERENCE:
        return ""
    if key == "low":
        return DASH if pd.isna(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}"
    return _number(row[key], 0 if key in ("lost", "gained", "failed") else 1)


def _number(item: Any, digits: int, signed: bool = False) -> str:
    if pd.isna(item):
        return DASH
    text = f"{item:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−")


def legend(table: Table) -> list[str]:
    """Explain the marks that occur in the table."""
    cells = [cell for line in lines(table) for cell in line.cells]
    used = {cell.mark for cell in cells} | {"same" for cell in cells if cell.same}
    used |= {"untested"} if table.untested else set()
    used |= {"inside" for row in records(table.frame) if _is_inside(row)}
    return [text for mark, text in LEGEND.items() if mark in used]


def markdown(table: Table) -> str:
    """Format the table for terminals and GitHub."""
    table, text = in_percent(table), escape.markdown
    titles = [text(f"{name} ({unit})" if unit else name) for name, unit in head(table)]
    keys = len(keys_of(table))
    rows = [titles, ["---"] * keys + ["---:"] * (len(titles) - keys)]
    marked = {"best": "**{}**", "second": "<ins>{}</ins>", "": "{}"}
    for line in lines(table):
        if line.heading:
            rows.append([f"*{text(line.heading)}*"] + [""] * (len(titles) - 1))
        else:
            rows.append([marked[cell.mark].format(text(str(cell))) + " ≈" * cell.same for cell in line.cells])
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    below = [*legend(table), *map(text, table.notes)]
    return f"**{text(table.caption)}**\n\n{body}\n" + "".join(f"\n* {note}" for note in below) + "\n" * bool(below)


def html(table: Table) -> Markup:
    """Format the table as a `<table>` with its caption, legend and notes, without styles."""
    table, text = in_percent(table), escape.html
    keys = list(keys_of(table))
    label = keys.index("label")
    marked = {"best": Markup("<b>{}</b>"), "second": Markup("<u>{}</u>"), "": Markup("{}")}
    key = Markup(' class="key"')
    same = Markup('<sup title="not significantly different from the best">≈</sup>')
    rows = [Markup("<caption>{}</caption>").format(text(table.caption)), Markup("<thead><tr>")]
    order = _average_first(table)
    titles = head(table)
    for place, (name, unit) in enumerate(titles[column] for column in order):
        cell = Markup('<th scope="col"{}>{}<small>{}</small></th>')
        rows.append(cell.format(key * (place < len(keys)), text(name), text(unit)))
    rows += [Markup("</tr></thead>"), Markup("<tbody>")]
    for line in lines(table):
        if line.heading:
            block = Markup('<tbody><tr><th scope="rowgroup" colspan="{}">{}</th></tr>')
            rows += [Markup("</tbody>"), block.format(len(head(table)), text(line.heading))]
            continue
        cells = [
            Markup('<th scope="row">{}</th>').format(text(str(cell)))
            if place == label
            else Markup("<td{}>{}{}</td>").format(
                key * (place < len(keys)), marked[cell.mark].format(text(str(cell))), same * cell.same
            )
            for place, cell in enumerate(line.cells[column] for column in order)
        ]
        rows.append(Markup("<tr>{}</tr>").format(Markup().join(cells)))
    notes = Markup().join(Markup("<li>{}</li>").format(text(note)) for note in [*legend(table), *table.notes])
    region = Markup('<div tabindex="0" role="region" aria-label="{}">')  # scrolls by keyboard, too
    whole = region + Markup("<table>\n{}\n</tbody></table></div>\n<ul>{}</ul>\n")
    return whole.format(text(table.caption), Markup("\n").join(rows), notes)


def _average_first(table: Table) -> list[int]:
    """Return the columns with the average and its interval before the benchmarks, where a narrow window shows them."""
    keys, end = len(keys_of(table)), len(keys_of(table)) + len(table.benchmarks)
    first = [end, *([end + 1] if "low" in _extra(table) else [])]
    return [*range(keys), *first, *range(keys, end), *range(first[-1] + 1, len(head(table)))]


def page(fragments: Iterable[Markup], title: str) -> str:
    """Return a complete HTML page around HTML fragments."""
    whole = Markup("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{}"><title>{}</title>\
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{}</style></head><body>
{}</body></html>
""")
    css = StyleSheet(STYLE).text
    return str(whole.format(policy(css), escape.html(title), css, Markup("\n").join(fragments)))


def sheet(tables: Sequence[Table]) -> pd.DataFrame:
    """Return all tables as one frame of text, for CSV.

    Numbers have the digits that are shown; cells without a value are empty.
    """
    frame = pd.concat([_text_of(table) for table in tables], ignore_index=True).fillna("")
    scores = list(dict.fromkeys(benchmark for table in tables for benchmark in table.benchmarks))
    order = [*LEADING, *OF_RUNS, *scores, AVERAGE, *TRAILING]
    empty = [name for name in ("model", "tasks", "setting", "hash") if name in frame and (frame[name] == "").all()]
    return frame[[column for column in order if column in frame and column not in empty]]


def _text_of(table: Table) -> pd.DataFrame:
    frame = table.frame.copy()
    frame["method"] = frame["label"].where(frame["label"] != "", frame["method"])
    for column, digits in {**DIGITS, **table.digits}.items():
        if column in frame:
            frame[column] = [_text(item, f".{digits}f") for item in frame[column]]
    frame["lambda"] = [_text(item, "g") for item in frame["lambda"]]
    return frame[[name for name in [*LEADING, *OF_RUNS, *table.columns, *TRAILING] if name in frame]].astype(object)


def _text(item: Any, form: str) -> str:
    return "" if pd.isna(item) else f"{item:{form}}"
