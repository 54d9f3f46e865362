"""What a data set's card says: its subsets and their files, how many questions a split has, size and licence."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.core.errors import UserError, one_line
from harness.data.sources import Source

KNOWN = Path(__file__).with_name("cards.yaml")


@dataclass(frozen=True)
class Facts:
    """What is known of a source; None is unknown. A text stands for a number that was rounded where it was read."""

    questions: int | str | None = None
    size: int | str | None = None  # bytes to download
    licence: str | None = None
    origins: dict[str, str] = field(default_factory=dict)  # of each fact: where it was read

    def completed_by(self, other: "Facts") -> "Facts":
        """Return the same with what only `other` knows."""
        names = ("questions", "size", "licence")
        more = {name: getattr(other, name) for name in names if getattr(self, name) is None}
        more = {name: value for name, value in more.items() if value is not None}
        origins = {**self.origins, **{name: other.origins[name] for name in more}}
        return replace(self, **more, origins=origins)

    @classmethod
    def of(cls, origin: str, **known: Any) -> "Facts":
        """Return facts that all come from one place."""
        found = {name: value for name, value in known.items() if value is not None}
        return cls(**found, origins=dict.fromkeys(found, origin))


def header(text: str, of: str) -> dict[str, Any]:
    """Return the YAML at the head of a card, an empty one where there is none; UserError if it is no YAML."""
    if not text.lstrip().startswith("---"):
        return {}
    try:
        content = yaml.safe_load(text.lstrip().removeprefix("---").partition("\n---")[0])
    except yaml.YAMLError as error:
        raise UserError(f"the card of {of} cannot be read ({one_line(error)[:120]}): report it to its owner") from error
    return content if isinstance(content, dict) else {}


def facts(card: Mapping[str, Any], source: Source, origin: str) -> Facts:
    """Return what a card says of the subset and split that a task reads."""
    entry = _entry(card.get("dataset_info"), source.subsets)
    splits = {split.get("name"): split.get("num_examples") for split in _dicts(entry.get("splits"))}
    licence = card.get("license")
    licence = ", ".join(map(str, licence)) if isinstance(licence, list) else licence
    size = None if len(source.subsets) > 1 or source.archives else entry.get("download_size")
    return Facts.of(origin, questions=splits.get(source.split), size=size, licence=licence)


def chosen_files(card: Mapping[str, Any], sources: Sequence[Source], sizes: Mapping[str, int]) -> list[str]:
    """Return the files of a repository that tasks need: all of them, unless its card assigns files to subsets.

    `datasets` looks up the files of the first subset whichever is loaded: of each of its splits, the smallest is added.
    """
    names = sorted(sizes)
    configs = {str(entry.get("config_name", "default")): entry for entry in _dicts(card.get("configs"))}
    wanted = {subset for source in sources for subset in source.subsets or (_default(configs),)}
    of_data = [_patterns(entry) for entry in configs.values()]
    if not configs or not wanted <= set(configs) or not all(of_data) or any(source.archives for source in sources):
        return names
    needed = {name for subset in wanted for pattern in _patterns(configs[subset]) for name in _matching(names, pattern)}
    for pattern in of_data[0]:
        matching = _matching(names, pattern)
        if matching and not needed.intersection(matching):
            needed.add(min(matching, key=lambda name: (sizes[name], name)))
    about = [name for name in names if "/" not in name and not name.endswith((".parquet", ".tsv", ".zip", ".tar"))]
    return sorted({*needed, *about})


def known(source: Source) -> Facts:
    """Return what pages of the Hub said when they were read; cards.yaml names the page of each number."""
    pages: list[dict[str, Any]] = _read_pages().get(Path(source.repository).name, [])
    facts = Facts()
    for page in pages:
        if page.get("kind", "dataset") != source.kind or page.get("subset") not in (None, *source.subsets):
            continue
        questions = (page.get("questions") or {}).get(source.split)
        facts = facts.completed_by(
            Facts.of(page["page"], questions=questions, size=page.get("size"), licence=page.get("licence"))
        )
    return facts


@cache
def _read_pages() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    return content


def _default(configs: Mapping[str, Any]) -> str:
    marked = [name for name, entry in configs.items() if entry.get("default")]
    return next(iter(marked), next(iter(configs)) if len(configs) == 1 else "default")


def _entry(infos: Any, subsets: Sequence[str]) -> dict[str, Any]:
    entries = {str(info.get("config_name", "default")): info for info in _dicts(infos)}
    name = subsets[0] if subsets else _default(entries) if entries else ""
    return entries.get(name, {})


def _patterns(entry: Mapping[str, Any]) -> list[str]:
    """Return the paths of a subset's files: one, a list, or a list of splits with theirs."""
    data = entry.get("data_files")
    parts = (
        [part.get("path") if isinstance(part, dict) else part for part in data] if isinstance(data, list) else [data]
    )
    patterns = [path for part in parts for path in (part if isinstance(part, list) else [part])]
    return [str(pattern) for pattern in patterns if pattern]


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _dicts(value: Any) -> list[dict[str, Any]]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, dict)]
