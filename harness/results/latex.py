"""Tables in LaTeX, with booktabs."""

import re

from harness.results.formats import head, keys_of, legend, lines
from harness.results.table import Table

NEEDS = r"needs \usepackage{booktabs}; \tiny and \setlength{\tabcolsep}{3pt} fit many columns on a page"
SAME = r"\rlap{\smash{\textsuperscript{$\approx$}}}"  # has no width, so numbers stay aligned


def latex(table: Table) -> str:
    r"""Format a table as a `tabular` for \input, with its notes as comments; NEEDS names the packages."""
    titles = head(table)
    keys = len(keys_of(table))
    marked = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    rows = [
        r"\begin{tabular}{" + "l" * keys + "c" * (len(titles) - keys) + "}",
        r"\toprule",
        " & ".join(tex(name) for name, _ in titles) + r" \\",
        *([" & ".join(tex(unit) for _, unit in titles) + r" \\"] if any(unit for _, unit in titles) else []),
        r"\midrule",
    ]
    for line in lines(table):
        if line.heading:
            rows += [
                r"\midrule",
                rf"\multicolumn{{{len(titles)}}}{{c}}{{\textit{{{tex(line.heading)}}}}} \\",
                r"\midrule",
            ]
            continue
        cells = [marked[c.mark] % tex(c.text) + SAME * c.same for c in line.cells]
        rows += [r"\addlinespace"] * line.rule + [" & ".join(cells) + r" \\"]
    below = [rf"\multicolumn{{{len(titles)}}}{{l}}{{{tex(note)}}} \\" for note in legend(table)]
    comments = [f"% {' '.join(note.split())}" for note in [table.caption, NEEDS, *table.notes]]
    return (
        "\n".join([*comments, *rows, r"\bottomrule", *([r"\addlinespace"] if below else []), *below, r"\end{tabular}"])
        + "\n"
    )


_TEX = {
    **{char: "\\" + char for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$"},
    **{"–": "--", "−": "$-$", "±": r"$\pm$", "≈": r"$\approx$", "λ": r"$\lambda$", "|": r"$|$"},
}


def tex(text: str) -> str:
    """Escape text for LaTeX."""
    return re.sub("|".join(map(re.escape, _TEX)), lambda match: _TEX[match[0]], text)
