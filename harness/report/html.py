"""Render the page: one HTML file that contains its styles, scripts, plots and pictures."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.core.escape import visible
from harness.core.files import json_line
from harness.results.web import StyleSheet, policy, verbatim

SCRIPTS = ("table.js", "gallery.js", "choose.js")


@cache
def environment() -> Environment:
    """Return a Jinja environment that escapes every text, shows its control characters and refuses undefined names."""
    loader = PackageLoader("harness.report", "templates")
    jinja = Environment(
        loader=loader,
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # Markup is our own, and escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.globals |= {"plural": plural, "policy": policy}
    return jinja


def _template(name: str) -> str:
    return (files("harness.report") / "templates" / name).read_text("utf-8")


def style_sheet() -> StyleSheet:
    """Return the page's style sheet, to which its plots and cells add their classes."""
    return StyleSheet(_template("style.css"))


def render(context: Mapping[str, Any]) -> str:
    """Return the page as text; `context` holds the names that templates/page.html uses."""
    script = verbatim("\n".join(map(_template, SCRIPTS)))
    return environment().get_template("page.html").render(script=script, **context).lstrip()


def script_json(value: Any) -> Markup:
    """Return JSON for a script element, which it cannot end; control characters in its texts are shown, lines stay."""
    text = json_line(_shown(value), separators=(",", ":"))
    return verbatim(text.replace("<", "\\u003c"))


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value, keep="\n\t")
    if isinstance(value, Mapping):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value


def plural(count: int, what: str) -> str:
    """Return a count with its noun, as in "1 run" and "2 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does, as in "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def called(model: str, tasks: str) -> str:
    """Return the label of a model on a set of tasks."""
    return model if model == tasks else f"{model}, tasks {tasks}"
