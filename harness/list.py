"""List the methods: python -m harness.list prints all of them, with method=idpruner a page about one."""

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from omegaconf import DictConfig

import methods
from harness.core.command import command
from harness.core.console import print_json, table_lines
from harness.core.errors import as_user_error, one_line
from harness.core.files import json_line
from harness.models import FAMILIES, adapter_class
from harness.models.adapter import EXAMPLE
from methods import checks
from methods.base import Method

WIDTH = 100  # columns of a terminal
LAYERS = 32  # of the decoder for which a schedule is shown
HEAD = ("method", "stage", "needs", "fidelity", "flash", "serve", "variants", "families")


def describe(name: str) -> dict[str, Any]:
    """Describe a method with its default parameters; ValueError or TypeError if it is unknown or does not load."""
    method = methods.load(name)
    params = {field.name: getattr(method, field.name) for field in fields(method) if field.init}
    options = {key: list(values) for key in params if (values := _choices(type(method), key))}
    return {
        "name": name,
        "stage": method.stage,
        "schedule": [[cut.layer, cut.k] for cut in method.cuts(*EXAMPLE, LAYERS)] if method.stage == "layers" else [],
        "needs": _needs(method),
        "with": dict(_variations(name, method, options)),
        "variants": options.get("variant", []),
        "fidelity": method.fidelity,
        "servable": method.servable,
        "flash": method.flash_compatible,
        "attention_maps": method.attention_maps,
        "families": {family: adapter_class(family).refusal(method) for family in FAMILIES},
        "params": params,
        "options": options,
        "not_public": sorted(method.unpublished_params),
        "doc": inspect.cleandoc(type(method).__doc__ or "no docstring"),
    }


def describe_all(names: Sequence[str]) -> list[dict[str, Any]]:
    """Describe every method; one that does not load, as a package's may, has the key "error"."""
    descriptions = []
    for name in names:
        try:
            descriptions.append(describe(name))
        except (ValueError, TypeError) as error:
            descriptions.append({"name": name, "error": one_line(error)})
    return descriptions


def _needs(method: Method) -> list[str]:
    return sorted(signal.value for signal in method.needs)


def _choices(method: type[Method], field: str) -> tuple[Any, ...]:
    hint = checks.hint(method, field)
    return get_args(hint) if get_origin(hint) is Literal else ()


def _variations(name: str, method: Method, options: Mapping[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "parameter=value" with stage and needs, for each value that changes them."""
    for key, values in options.items():
        for value in values:
            other = methods.load(name, **{key: value})
            if (other.stage, other.needs) != (method.stage, method.needs):
                yield f"{key}={value}", {"stage": other.stage, "needs": _needs(other)}


def table(descriptions: Sequence[Mapping[str, Any]], unavailable: Mapping[str, str] = {}) -> str:
    """Format one row per method, with its parameters and its deviation below, and a legend.

    `unavailable` methods, each with the reason, follow the others.
    """
    rows = {method["name"]: _row(method) for method in descriptions if "error" not in method}
    head, *below = table_lines([HEAD, *rows.values()], left=None)
    lines, line_of = [head], dict(zip(rows, below, strict=True))
    for method in descriptions:
        if "error" in method:
            lines += _indented(f"{method['name']} does not load: {method['error']}", "")
            continue
        lines.append(line_of[method["name"]])
        if method["params"]:
            lines += _indented(" ".join(_parameters(method)))
        if method["fidelity"].startswith("adapted"):
            lines += _indented(method["fidelity"])
    for name, why in unavailable.items():
        lines += _indented(f"{name} is not available: {why}", "")
    numbered = ", ".join(f"{number} {family}" for number, family in enumerate(FAMILIES, 1))
    legend = [
        f"families (- cannot run it): {numbered}",
        "fidelity: exact (the indices of the authors' code wherever it keeps K) or adapted.",
        "flash: runs under FlashAttention.",
        "serve: a serving engine could run it, since it reads only the output of the vision tower.",
        "* our choice, since the authors publish no value.",
        "python -m harness.list method=NAME shows one method: idea, paper, formula, parameters.",
    ]
    return "\n".join([*lines, "", *(line for text in legend for line in _indented(text, ""))])


def _row(method: Mapping[str, Any]) -> list[str]:
    tower = "/".join(name.removeprefix("vit_") for name in method["needs"] if name.startswith("vit_"))
    others = [name for name in method["needs"] if not name.startswith("vit_")]
    needs = ", ".join([*others, *([f"vit_{tower}"] if tower else [])]) or "-"
    flags = ["yes" if method[flag] else "no" for flag in ("flash", "servable")]
    fidelity = method["fidelity"].partition(":")[0]
    variants = ", ".join(map(str, method["variants"])) or "-"
    numbers = "".join("-" if why else str(number) for number, why in enumerate(method["families"].values(), 1))
    return [method["name"], method["stage"], needs, fidelity, *flags, variants, numbers]


def _parameters(method: Mapping[str, Any]) -> list[str]:
    """Return each parameter with its default in command-line form; a star marks a default that is our choice."""
    defaults = {key: json_line(v) if v is None or isinstance(v, bool) else v for key, v in method["params"].items()}
    return [f"{key}={value}{'*' * (key in method['not_public'])}" for key, value in defaults.items()]


def page(method: Mapping[str, Any]) -> str:
    """Format the description of one method, its docstring first."""
    refused = {family: why for family, why in method["families"].items() if why}
    params = [
        text + (f"   one of {', '.join(map(str, method['options'][key]))}" if key in method["options"] else "")
        for key, text in zip(method["params"], _parameters(method), strict=True)
    ]
    facts = {
        "stage": [method["stage"]] + [_schedule(method["schedule"])] * bool(method["schedule"]),
        "needs": [", ".join(method["needs"]) or "only the features"]
        + [f"with {key}: {', '.join(v['needs']) or 'none'} ({v['stage']})" for key, v in method["with"].items()],
        "variants": method["variants"],
        "fidelity": [method["fidelity"]],
        "flash": ["runs under FlashAttention" if method["flash"] else "does not run under FlashAttention"]
        + ["its authors' code does not, since it reads attention maps"] * bool(method["attention_maps"])
        + ["its authors' code reads no attention maps"] * (method["attention_maps"] is False),
        "servable": ["a serving engine could run it" if method["servable"] else "reads what a serving engine hides"],
        "families": [family for family in method["families"] if family not in refused]
        + [f"not {family}: {why}" for family, why in refused.items()],
        "parameters": params + ["* our choice, since the authors publish no value"] * bool(method["not_public"]),
    }
    lines = [method["name"], ""]
    for line in _unwrapped(method["doc"]):
        lines += _indented(line.strip(), " " * _indent(line))
    lines.append("")
    for label, texts in facts.items():
        for number, text in enumerate(texts or ["-"]):
            block = _indented(str(text), " " * 12)
            lines += [label.ljust(12) + block[0][12:], *block[1:]] if number == 0 else block
    return "\n".join(lines)


def _schedule(cuts: Sequence[tuple[int, int]]) -> str:
    places = [f"{k} {'at the input' if layer < 0 else f'after layer {layer}'}" for layer, k in cuts]
    return f"of {EXAMPLE[0]} tokens, K = {EXAMPLE[1]}, in {LAYERS} layers: {', '.join(places)}"


def _unwrapped(doc: str) -> list[str]:
    """Join the lines of each paragraph and argument of a docstring; formulas keep their lines."""
    lines: list[str] = []
    arguments = False
    for line in doc.splitlines():
        arguments = line == "Args:" or (arguments and bool(line))
        continues = _indent(line) > 4 if arguments else _indent(line) == 0
        if line and lines and lines[-1] and continues and line != "Args:":
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return lines


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _indented(text: str, indent: str = "    ") -> list[str]:
    """Wrap text to the width of the terminal; an empty text gives one empty line."""
    wrap = textwrap.TextWrapper(WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    wrap.break_long_words = False
    return wrap.wrap(text) or [""]


def prepare(overrides: list[str]) -> list[str]:
    """Rename `method=` to `show=`, since Hydra takes `method` for a group of conf/ and demands a file."""
    return ["show" + text.removeprefix("method") if text.startswith("method=") else text for text in overrides]


def main(cfg: DictConfig) -> None:
    """Print the table or one method's page, and the same as one JSON line."""
    unavailable = {name: why for name, why in methods.UNAVAILABLE.items() if name not in methods.names()}
    if cfg.show is None:
        descriptions = describe_all(methods.names())
        print(table(descriptions, unavailable))
    else:
        with as_user_error((ValueError, TypeError)):
            descriptions = [describe(str(cfg.show))]
        print(page(descriptions[0]))
    print_json({"families": list(FAMILIES), "methods": descriptions, "unavailable": unavailable}, default=str)


if __name__ == "__main__":
    command("list", main, prepare=prepare)
