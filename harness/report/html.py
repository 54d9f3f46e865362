"""Render the page: one HTML file that contains its styles, scripts, plots and pictures."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

SCRIPTS = ("table.js", "gallery.js")


@cache
def environment() -> Environment:
    """Return a Jinja environment that escapes every text and refuses undefined names."""
    loader = PackageLoader("harness.report", "templates")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.globals["plural"] = plural
    return jinja


def render(context: Mapping[str, Any]) -> str:
    """Return the page as text; `context` holds the names that templates/page.html uses."""
    css, *scripts = (
        (files("harness.report") / "templates" / name).read_text("utf-8") for name in ("style.css", *SCRIPTS)
    )
    return environment().get_template("page.html").render(css=css, js="\n".join(scripts), **context).lstrip()


def script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plural(count: int, what: str) -> str:
    """Return a count with its noun, as in "1 run" and "2 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does, as in "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def called(model: str, tasks: str) -> str:
    """Return the label of a model on a set of tasks."""
    return model if model == tasks else f"{model}, tasks {tasks}"
