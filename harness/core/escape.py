"""Text from outside (names, answers, errors), written so that a format shows it and does not obey it.

A run may come from anyone. Each format has one function here; all write control characters out, as in `\\x1b`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

JOINERS = "\u200c\u200d"  # invisible, but scripts and emoji need them, and they move no text
_MARKDOWN = re.compile(
    r"[\\`|$~]"
    r"|\*(?=\S)|(?<![^\W_])_(?=\S)"  # begins an emphasis
    r"|<(?=[A-Za-z/!?])|&(?=#?\w+;)"  # tags and entities
    r"|\](?=[(\[:])"  # links
    r"|^[#>+=-](?![\d.])"  # headings, quotations, lists
)
_LATEX = {
    **{char: "\\" + char for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$"},
    **{"–": "--", "−": "$-$", "±": r"$\pm$", "≈": r"$\approx$", "λ": r"$\lambda$", "|": r"$|$", "…": r"\dots{}"},
}
_FORMULA = re.compile(r"'*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def visible(text: str, keep: str = "") -> str:
    r"""Write out control characters, separators of lines and marks of direction, as "\x1b"; `keep` has exceptions."""
    if text.isprintable():
        return text
    return "".join(char if _is_visible(char) or char in keep else _code(char) for char in text)


def _is_visible(char: str) -> bool:
    return char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs"


def _code(char: str) -> str:
    return char.encode("unicode_escape").decode()


def html(text: str) -> Markup:
    """Return text for an element or a quoted attribute of HTML."""
    from markupsafe import escape  # here, since the main command writes no page

    return escape(visible(text))


def markdown(text: str) -> str:
    """Return text for a cell, a caption or a list item of GitHub's Markdown; plain names stay as they are."""
    return _MARKDOWN.sub(lambda char: "\\" + char[0], visible(text))


def latex(text: str) -> str:
    r"""Return text for LaTeX; a bracket or star in front is no argument of the \\ before it."""
    text = re.sub("|".join(map(re.escape, _LATEX)), lambda char: _LATEX[char[0]], visible(text))
    return f"{{{text[0]}}}{text[1:]}" if text[:1] in ("[", "*") else text


def cell(text: str) -> str:
    """Return the text of a cell of a CSV file, with an apostrophe where a spreadsheet would compute it."""
    text = visible(text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def text_of(cell: str) -> str:
    """Return the text that `cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv(frame: pd.DataFrame, **options: Any) -> str:
    """Return a frame as CSV; its texts and the names of its columns are no formulas, its numbers are as they are."""
    from pandas.api.types import is_numeric_dtype

    safe = frame.set_axis([cell(str(name)) for name in frame], axis=1)
    for place, dtype in enumerate(frame.dtypes):
        if not is_numeric_dtype(dtype):
            items = frame.iloc[:, place].astype(object)
            safe.isetitem(place, [cell(item) if isinstance(item, str) else item for item in items])
    return str(safe.to_csv(index=False, **options))
