"""What is known of the data and weights of a run, as a table: from the copy that is here, the Hub, or pages of it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.config import TasksConfig
from harness.core.console import table_lines
from harness.core.errors import UserError
from harness.data import cards
from harness.data.cards import Facts
from harness.data.fetch import in_words
from harness.data.hub import Listing
from harness.data.sources import Source
from harness.evaluation import datasets
from harness.models import checkpoint

HEAD = ("for", "repository", "subset", "split", "questions", "size", "licence", "here")
UNKNOWN = "unknown"
TODAY = "the Hub, today"


@dataclass(frozen=True)
class Row:
    """A source with what is known of it."""

    source: Source
    facts: Facts
    place: Path | None  # on this machine; None: not here
    wrong: str = ""  # what is wrong with what is here
    files: int | None = None  # how many are to be downloaded, or are here of a model
    command: str = ""  # which fetches it

    def cells(self) -> list[str]:
        """Return the row as texts; `here` is yes, no or damaged."""
        here = "damaged" if self.wrong else "no" if self.place is None else "yes"
        *about, size, licence = cells(self.source, self.facts)
        return [*about, size + (f" in {self.files} files" if self.files else ""), licence, here]

    def as_json(self) -> dict[str, Any]:
        """Return the row for programs."""
        source, facts = self.source, self.facts
        known = {name: getattr(facts, name) for name in ("questions", "size", "licence")}
        return {
            **{name: getattr(source, name) for name in ("kind", "name", "repository", "revision", "split")},
            "subsets": list(source.subsets),
            **known,
            "files": self.files,
            "known_from": facts.origins,
            "here": None if self.place is None else str(self.place),
            "wrong": self.wrong or None,
            "command": self.command,
        }


def cells(source: Source, facts: Facts) -> list[str]:
    """Return what a source is and what is known of it as texts."""
    number = UNKNOWN if facts.questions is None else str(facts.questions)
    if source.rows and facts.questions is not None:
        number += " rows"
    size = in_words(facts.size) if isinstance(facts.size, int) else facts.size or UNKNOWN
    repository = source.repository + (f"@{source.revision}" if source.revision else "")
    subsets = source.subsets[0] if len(source.subsets) == 1 else f"{len(source.subsets)} subsets"
    model = source.kind == "model"
    return [
        source.name,
        repository,
        "-" if model or not source.subsets else subsets,
        "-" if model else source.split or "-",
        "-" if model else number,
        size,
        facts.licence or UNKNOWN,
    ]


def row(source: Source, data_root: datasets.DataRoot, listing: Listing | None, to: str) -> Row:
    """Look for a source on this machine, and gather what is known: its card here, the Hub, or pages of the Hub."""
    place, wrong = _place(source, data_root)
    facts, files = Facts(), None
    if place is not None and source.kind == "dataset":
        for card in [path for path in (place / "README.md", *sorted(place.glob("*/README.md"))) if path.is_file()][:1]:
            text = card.read_text(encoding="utf-8", errors="replace")
            facts = cards.facts(cards.header(text, str(card)), source, str(card))
    elif place is not None:
        sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
        facts, files = Facts.of(f"the files in {place}", size=sum(sizes)), len(sizes)
    if listing is not None:
        chosen = listing.sizes if source.kind == "model" else cards.chosen_files(listing.card, [source], listing.sizes)
        today, files = Facts.of(TODAY, size=sum(listing.sizes[name] for name in chosen)), len(chosen)
        facts = today.completed_by(facts).completed_by(cards.facts(listing.card, source, TODAY))
    return Row(source, facts.completed_by(cards.known(source)), place, wrong, files, command(source, to))


def command(source: Source, to: str) -> str:
    """Return the command of huggingface_hub that fetches a whole repository into a place where the harness finds it."""
    kind = " --repo-type dataset" if source.kind == "dataset" else ""
    revision = f" --revision {shlex.quote(source.revision)}" if source.revision else ""
    return f"hf download{kind} {source.repository}{revision} --local-dir {shlex.quote(str(Path(to, source.folder)))}"


def _place(source: Source, data_root: datasets.DataRoot) -> tuple[Path | None, str]:
    """Return where a source is, None if it is not here, and what is wrong with it."""
    if source.kind == "model":
        folder = checkpoint.cached_folder(source.repository, source.revision)
        if folder is None:
            return None, ""
        try:
            checkpoint.check_folder(folder)
        except UserError as error:
            return folder, str(error)
        return folder, ""
    if isinstance(data_root, Mapping):
        data_root = {source.name: data_root[source.name]} if source.name in data_root else None
    if data_root is None:
        return datasets.cached(source.repository), ""
    try:
        return datasets.local(TasksConfig(metrics={source.name: None}), data_root)[source.name], ""
    except datasets.NoCopyError:
        return None, ""
    except UserError as error:
        return None, str(error)


def text(rows: Sequence[Row]) -> str:
    """Format a table, below it where each thing is or how to fetch it, and where the numbers come from."""
    lines = table_lines([HEAD, *(row.cells() for row in rows)], left=None)
    lines.append("")
    for row in rows:
        if row.wrong:
            lines.append(f"{row.source.name} is damaged: {row.wrong}")
        elif row.place is not None:
            lines.append(f"{row.source.name} is in {row.place}")
    lines += dict.fromkeys(row.command for row in rows if row.place is None or row.wrong)
    lines += ["", *_notes([row.facts for row in rows])]
    return "\n".join(lines)


def _notes(facts: Sequence[Facts]) -> list[str]:
    """Say of each place which facts were read there."""
    origins = dict.fromkeys(origin for known in facts for origin in known.origins.values())
    return [f"known from {origin}" for origin in origins]


def markdown(suites: Mapping[str, Sequence[Source]], models: Sequence[Source]) -> str:
    """Write docs/data.md: what pages of the Hub said of every benchmark in conf/tasks and every model in conf/model."""
    pages: dict[str, int] = {}
    lines = [Path(__file__).with_name("preface.md").read_text(encoding="utf-8")]
    head = list(HEAD[:-1])
    for name, sources in {**suites, "Models": models}.items():
        title = name if name == "Models" else f"tasks={name}"
        columns = ["model", "repository", "size", "licence"] if name == "Models" else ["task", *head[1:]]
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        for source in sources:
            facts = cards.known(source)
            marks = {
                key: "".join(
                    f" [{pages.setdefault(page, len(pages) + 1)}]" for page in [facts.origins.get(key)] if page
                )
                for key in ("questions", "size", "licence")
            }
            *about, questions, size, licence = cells(source, facts)
            numbers = [questions + marks["questions"], size + marks["size"], licence + marks["licence"]]
            kept = [*about[:2], *numbers[1:]] if source.kind == "model" else [*about, *numbers]
            lines.append(f"| {' | '.join(f'`{cell}`' if n < 2 else cell for n, cell in enumerate(kept))} |")
        lines.append("")
    lines += ["## Where the numbers come from", "", "Pages of the Hub, as they were when they were read:", ""]
    lines += [f"{number}. <{page}>" for page, number in pages.items()]
    return "\n".join(lines) + "\n"
