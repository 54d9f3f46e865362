"""Tables in LaTeX, with booktabs."""

import re

from harness.core.escape import latex as tex
from harness.core.escape import visible
from harness.core.files import slug
from harness.results.formats import head, keys_of, legend, lines
from harness.results.table import Table, in_percent

NEEDS = r"needs \usepackage{booktabs}; \tiny and \setlength{\tabcolsep}{3pt} fit many columns on a page"
FLOAT_NEEDS = r"needs \usepackage{booktabs,graphicx}"
SAME = r"\rlap{\smash{\textsuperscript{$\approx$}}}"  # has no width, so numbers stay aligned
ERROR = r"$_{\pm%s}$"
SCREEN_ONLY = ("lost", "gained", "agreement", "kept", "per_layer")  # columns of the other formats
# A float around a tabular. A table that is wider than the line or higher than the page shrinks to fit.
FLOAT = r"""\begin{table}[tp]
\centering
\caption{%s}
\label{tab:%s}
\par\smallskip
\setlength{\tabcolsep}{4pt}
\sbox0{%%
%s}%%
\ifdim\wd0>\linewidth \sbox0{\resizebox{\linewidth}{!}{\usebox0}}\fi
\ifdim\dimexpr\ht0+\dp0>.8\textheight \sbox0{\resizebox*{!}{.8\textheight}{\usebox0}}\fi
\usebox0
\end{table}
"""


def latex(table: Table, is_float: bool = False) -> str:
    r"""Format a table as a `tabular` for \input, with its notes as comments; a comment names the packages.

    With `is_float`, format a whole `table` with caption and label; its caption contains the legend. In both, columns
    that only serve to examine runs are left out.
    """
    table = in_percent(table)
    titles = head(table, SCREEN_ONLY)
    keys = len(keys_of(table))
    marked = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    rows = [
        r"\begin{tabular}{" + "l" * keys + "c" * (len(titles) - keys) + "}",
        r"\toprule",
        " & ".join(tex(name) for name, _ in titles) + r" \\",
        *([" & ".join(tex(unit) for _, unit in titles) + r" \\"] if any(unit for _, unit in titles) else []),
        r"\midrule",
    ]
    for line in lines(table, SCREEN_ONLY):
        if line.heading:
            rows += [
                r"\midrule",
                rf"\multicolumn{{{len(titles)}}}{{c}}{{\textit{{{tex(line.heading)}}}}} \\",
                r"\midrule",
            ]
            continue
        cells = []
        for cell in line.cells:
            error = ERROR % tex(cell.error) if cell.error else ""
            cells.append(marked[cell.mark] % tex(cell.text) + SAME * cell.same + error)
        rows += [r"\addlinespace"] * line.rule + [" & ".join(cells) + r" \\"]
    explained = [] if is_float else legend(table)
    below = [rf"\multicolumn{{{len(titles)}}}{{l}}{{{tex(note)}}} \\" for note in explained]
    rows += [r"\bottomrule", *([r"\addlinespace"] if below else []), *below, r"\end{tabular}"]
    needs = FLOAT_NEEDS if is_float else NEEDS
    comments = [f"% {visible(note)}" for note in [table.caption, needs, *table.notes]]
    body = "\n".join(rows)
    if is_float:
        own = re.sub(r"^Table \d+: ", "", table.caption)  # LaTeX numbers tables itself
        caption = ". ".join([own, *(text[0].upper() + text[1:] for text in legend(table))])
        body = (FLOAT % (tex(caption + "."), slug(table.name), body)).rstrip()
    return "\n".join([*comments, body]) + "\n"
