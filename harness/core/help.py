"""The page of --help: every setting of a command with its default and its meaning, which the comments in conf/ hold.

A comment after a key is its meaning, with unit and range; indented lines of comment below it go on. The comment at the
top of a command's file begins its page. "as in X.yaml" stands for the comment of the same key there.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

import methods
from harness.core.config import conf, plain
from harness.core.config_groups import command_of, module_of, options
from harness.core.overrides import compose

WIDTH, INDENT = 100, 30  # columns of the page, and those in front of a meaning
EXPLAINED_BY = {"model": "pocket", "tasks": "pocket"}  # group whose choices have the same keys -> the one with comments


@dataclass(frozen=True)
class Setting:
    """A key of a command, with its default as the command line takes it, and its meaning."""

    key: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """A key that chooses a file of settings: what is chosen, what there is to choose, and the settings that come."""

    chosen: Setting
    choices: list[str]
    plugins: list[str]  # of installed packages, by the names of their entry points
    settings: list[Setting]


@dataclass(frozen=True)
class Comments:
    """The comments of a file in conf/, and the files of its folder that it includes."""

    heading: list[str]
    keys: Mapping[str, str]
    groups: Mapping[str, str]  # of its defaults list
    parents: list[str]


def page(config_name: str, overrides: Sequence[str] = ()) -> str:
    """Return the page of a command, with the settings that its overrides choose."""
    settings, groups = described(config_name, overrides)
    lines = [*comments(conf(f"{config_name}.yaml")).heading, "", "Settings, as key=value, with their defaults:"]
    lines += [line for setting in settings for line in _row(setting)]
    for group in groups:
        lines += ["", *_wrapped(f"{group.chosen.key}={group.chosen.default}: {group.chosen.meaning}", 0, 2)]
        lines += _wrapped(f"one of: {', '.join(group.choices)}", 2, 4)
        lines += _wrapped(f"of other packages: {', '.join(group.plugins)}", 2, 4) if group.plugins else []
        lines += [line for setting in group.settings for line in _row(setting)]
    return "\n".join(lines)


def described(config_name: str, overrides: Sequence[str] = ()) -> tuple[list[Setting], list[Group]]:
    """Return the settings of a command, and the groups from which it takes others."""
    cfg = compose(config_name, list(overrides), return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    tree = {str(key): plain(cfg[key]) for key in cfg if key != "hydra"}
    files = list(_with_parents(conf(f"{config_name}.yaml")))
    meanings = {name: _meaning(name, files, "groups") for file in files for name in comments(file).groups}
    groups = [
        _group(config_name, Setting(name, _text(choices.get(name)), meaning), tree.pop(name, {}))
        for name, meaning in meanings.items()
    ]
    return [Setting(key, _text(value), _meaning(key, files)) for key, value in tree.items()], groups


def is_command(config_name: str) -> bool:
    """Return whether conf/ has a file of a command by this name, and not one that others include."""
    file = conf(f"{config_name}.yaml")
    return file.is_file() and comments(file).heading[:1] != [] and comments(file).heading[0].startswith("python -m ")


@cache
def comments(file: Path) -> Comments:
    """Read the comments of a file in conf/."""
    text = file.read_text(encoding="utf-8")
    lines = text.split("\n")
    top = takewhile(lambda line: line.startswith("#"), lines)
    heading = [line[2:] for line in top if not line.startswith("# @package")]
    keys: dict[str, str] = {}
    groups: dict[str, str] = {}
    parents: list[str] = []
    root = yaml.compose(text, yaml.SafeLoader)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        keys[key.value] = _comment(lines, key, value)
        if key.value == "defaults":
            for item in value.value:
                if isinstance(item, yaml.ScalarNode):
                    parents += [item.value] * (item.value != "_self_")
                elif not (name := item.value[0][0].value).startswith("override "):
                    groups[name.removeprefix("optional ")] = _comment(lines, *item.value[0])
    return Comments(heading, keys, groups, parents)


def _comment(lines: Sequence[str], key: yaml.Node, value: yaml.Node) -> str:
    """Return what is said of a key behind its value, or behind the key of a block, and in indented lines below."""
    number = key.start_mark.line
    on_line = value.end_mark.line == number
    rest = lines[number][value.end_mark.column if on_line else key.end_mark.column :]
    parts = [rest.partition("#")[2].strip()]
    for line in lines[value.end_mark.line + 1 if on_line else number + 1 :]:
        if not (more := re.fullmatch(r"\s+# ?(.*)", line)):
            break
        parts.append(more[1].strip())
    return " ".join(filter(None, parts))


def _with_parents(file: Path) -> Iterator[Path]:
    """Yield a file of conf/ and those that it includes, the nearest first."""
    yield file
    for name in comments(file).parents:
        yield from _with_parents(file.with_name(f"{name}.yaml"))


def _meaning(key: str, files: Sequence[Path], of: str = "keys") -> str:
    """Return the first comment on a key."""
    meaning = next(filter(None, (getattr(comments(file), of).get(key) for file in files)), "")
    if other := re.fullmatch(r"as in (\w+)\.yaml", meaning):
        return _meaning(key, [conf(f"{other[1]}.yaml")], of)
    return meaning


def _group(config_name: str, chosen: Setting, tree: dict[str, Any]) -> Group:
    name = chosen.key
    choices = options(name)
    if name == "experiment":
        choices = [choice for choice in choices if command_of(choice) == module_of(config_name)]
    plugins = [method for method in methods.names() if method not in choices] if name == "method" else []
    if name == "method":  # a method is known by its name, and the group has none of its own
        option, tree = str(tree["name"]), {key: value for key, value in tree.items() if key != "name"}
        if option not in choices:
            line = Setting("method.NAME", "VALUE", f"python -m harness.list method={option} shows its parameters")
            return Group(chosen, choices, plugins, [line])
    else:
        option = chosen.default
    own = conf(name, f"{option}.yaml")
    files = list(_with_parents(own)) if own.is_file() else []
    explained = [conf(name, f"{EXPLAINED_BY[name]}.yaml")] if name in EXPLAINED_BY else []
    settings = []
    for key, value in tree.items():
        general, remark = _meaning(key, explained), _meaning(key, [file for file in files if file not in explained])
        meaning = f"{general} ({option}: {remark})" if general and remark else general or remark
        settings.append(Setting(f"{name}.{key}", _text(value), meaning))
    return Group(chosen, choices, plugins, settings)


def _text(value: Any) -> str:
    """Return a value as the command line takes it, but for the quotes that a shell needs."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(item)}' for key, item in value.items())}}}"
    return str(value)


def _row(setting: Setting) -> list[str]:
    """Return the lines of a setting: its meaning begins in one column, below a default that reaches it."""
    first = _wrapped(f"{setting.key}={setting.default}", 2, 6)
    below = _wrapped(setting.meaning, INDENT, INDENT)
    if len(first) > 1 or len(first[0]) > INDENT - 2:
        return first + below
    return [first[0].ljust(INDENT) + below[0].strip(), *below[1:]]


def _wrapped(text: str, indent: int, hanging: int) -> list[str]:
    wrap = textwrap.TextWrapper(WIDTH, initial_indent=" " * indent, subsequent_indent=" " * hanging)
    wrap.break_long_words = wrap.break_on_hyphens = False
    return wrap.wrap(text) or [""]
