"""Runs whose every text is hostile to some format: markup, formulas, commands, control characters."""

from pathlib import Path
from typing import Any

from synthetic_runs import write_run

TEXTS = [
    "<script>ran()</script>",
    '"><img src=x onerror=ran()>',
    "' onmouseover='ran()' autofocus onfocus='ran()",
    "</style></script><script>ran()</script>",
    "]]></text></svg><script>ran()</script><!--",
    "javascript:ran()",
    "{{ 7 * 7 }}${ran()}&lt;b&gt;",
    '=HYPERLINK("https://example.org")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "[\\input{/etc/passwd} \\end{tabular} $x_1^2$ & % # ~ ± \\write18{ls}",
    "*|*`_[x](javascript:ran())_~~\\| ![y](https://example.org/y)",
    "_\x00\x07\x08\x1b[2J\x1b]0;title\x07\r\n\t\x7f\x85\u2028\u2029",
    "\u202etxt.exe\u2066\u200f\ufeff",
    "x" * 5000,
]
ALL = "=" + "".join(TEXTS[:-1])  # the long one aside, for what stands in many places
METRICS = (TEXTS[0], TEXTS[3], "$x|y_")  # which are expressions, and have no newline
TASKS = {f"{TEXTS[place]}_task": f"{metric},none" for place, metric in zip((1, 12, 13), METRICS, strict=True)}


def write_runs(root: Path) -> Path:
    """Write an unpruned run and one for each text, its method; all other fields hold all texts."""
    recorded: dict[str, Any] = {"git": ALL, "device": ALL, "python": ALL, "started": ALL, "packages": {ALL: ALL}}
    recorded |= {"made_from": {ALL: {"digest": ALL, "tasks": ALL}}, "decoding": {"verified": False, "reason": ALL}}
    more = {"tasks": TASKS, "model": ALL, "suite": ALL, "recorded": recorded, "said": ALL, "questions": 4}
    write_run(root, "none", **more)
    for place, text in enumerate(TEXTS):
        write_run(root, text, 0.25, 0.1 + 0.05 * place, **more, **{ALL: ALL})
    write_run(root, TEXTS[0], 0.5, 0.5, **more, lam=0.25)
    write_run(root, TEXTS[0], 0.5, 0.6, **more, lam=0.75)
    write_run(root, "unfinished", finish=False, **{**more, "tasks": {"one": "acc"}})
    return root
