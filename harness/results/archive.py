"""Archives: many finished runs in two files, small enough to commit.

An archive is a folder. Its `provenance.jsonl` has a header, which holds checksums, and one line per run with what
`run.json`, `metrics.json` and `DONE` held. Its `scores.parquet` has one row per run, task, metric and question.
Responses and kept tokens are left out.

The path of an archived run is the archive's path plus the run's name MODEL/TASKS/FOLDER, as in a folder of runs.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, one_line
from harness.core.files import BAD_JSON, from_json, from_jsonl, has_crlf, json_line, json_lines, write_atomic, writing
from harness.results.metrics import OF_QUESTION

PROVENANCE, SCORES = "provenance.jsonl", "scores.parquet"
FORMAT = 2  # format 1 has no column `picture`

PerQuestion = dict[str, dict[str, list[Any]]]  # task -> "doc_id", "picture" and each metric -> a value per question


@dataclass(frozen=True)
class ArchivedRun:
    """What an archive holds of one run."""

    name: str
    about: dict[str, Any]
    metrics: dict[str, Any]
    finished: dict[str, Any]
    per_question: PerQuestion


def is_archive(folder: Path) -> bool:
    """True for a folder with one of an archive's files; `read` refuses it if the other is missing."""
    return (folder / PROVENANCE).is_file() or (folder / SCORES).is_file()


def enclosing(path: Path) -> Path | None:
    """Return the archive that `path` names or leads into; None if there is none."""
    return next((folder for folder in (path, *path.parents) if is_archive(folder)), None)


def runs_below(path: Path) -> Iterator[tuple[Path, ArchivedRun]]:
    """Yield every archived run at or below `path`, which may lead into an archive, with the run's own path."""
    archives = {file.parent for name in (PROVENANCE, SCORES) for file in path.rglob(name)}
    for folder in sorted(archives | {folder for folder in [enclosing(path)] if folder}):
        for run in read(folder):
            if (folder / run.name).is_relative_to(path):
                yield folder / run.name, run


def read(folder: Path) -> list[ArchivedRun]:
    """Read an archive; UserError unless it is complete and of a known format."""
    hint = f"restore {PROVENANCE} and {SCORES}, for example with git checkout"
    try:
        provenance, scores = ((folder / name).read_bytes() for name in (PROVENANCE, SCORES))
        if not (lines := from_jsonl(provenance)):
            raise ValueError(f"{PROVENANCE} is empty")
        header, *records = lines
        if header["format"] not in range(1, FORMAT + 1):
            expected = f"expected 1 to {FORMAT}: install a newer harness"
            raise UserError(f"{folder} is an archive of format {header['format']}, {expected}")
        for name, content in ((PROVENANCE, provenance.partition(b"\n")[2]), (SCORES, scores)):
            if _sha256(content) != (expected := header["sha256"][name]):
                cause = "it has got CRLF line ends" if has_crlf(content, expected) else "it was changed"
                raise ValueError(f"the SHA-256 of {name} is not the one in the header of {PROVENANCE}: {cause}")
        per_question = _from_parquet(scores)
        by_name = {record["run"]: record for record in records}
        if unpaired := sorted(by_name.keys() ^ per_question.keys()):
            raise ValueError(f"{unpaired[0]} is in only one of {PROVENANCE} and {SCORES}")
        return [
            ArchivedRun(name, record["run.json"], record["metrics.json"], record["DONE"], per_question[name])
            for name, record in by_name.items()
        ]
    except (OSError, KeyError, TypeError, AttributeError, *BAD_JSON) as error:
        raise UserError(f"{folder} is a damaged archive ({one_line(error)}): {hint}") from error


def write(folder: Path, runs: Sequence[ArchivedRun]) -> None:
    """Write an archive in the order of the runs' names; an interrupted write leaves one that `read` refuses."""
    runs = sorted(runs, key=lambda run: run.name)
    if repeated := {run.name for run, other in pairwise(runs) if run.name == other.name}:
        raise UserError(f"two different runs are called {min(repeated)}, expected one of each name: rename a folder")
    records = [
        {"run": run.name, "run.json": _without_place(run.about), "metrics.json": run.metrics, "DONE": run.finished}
        for run in runs
    ]
    lines = json_lines(records)
    scores = _to_parquet(runs)
    header = {"format": FORMAT, "sha256": {PROVENANCE: _sha256(lines.encode()), SCORES: _sha256(scores)}}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / SCORES, scores)
    write_atomic(folder / PROVENANCE, json_lines([header]) + lines)


def _without_place(about: dict[str, Any]) -> dict[str, Any]:
    """Return run.json without the folder that the run was written to, which means nothing on another machine."""
    parts = {"config": {key: value for key, value in about.get("config", {}).items() if key != "runs"}}
    return {key: parts.get(key, value) for key, value in about.items()}


def _to_parquet(runs: Sequence[ArchivedRun]) -> bytes:
    """Return one row per run, task, metric and question; rows of one metric are consecutive.

    `score` is the value as a number. `record` is the value as JSON where it is no float.
    """
    import pandas as pd  # here, since commands that read no archive import this module, too

    names = ("run", "task", "metric", "doc_id", "picture", "score", "record")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for run in runs:
        for task, scores in run.per_question.items():
            metrics: list[str | None] = [name for name in scores if name not in OF_QUESTION]
            for metric in metrics or [None]:
                values = scores[metric] if metric else [None] * len(scores["doc_id"])
                columns["run"] += [run.name] * len(values)
                columns["task"] += [task] * len(values)
                columns["metric"] += [metric] * len(values)
                columns["doc_id"] += scores["doc_id"]
                columns["picture"] += scores.get("picture", [None] * len(values))
                columns["score"] += [float(value) if isinstance(value, int | float) else None for value in values]
                columns["record"] += [
                    None if value is None or type(value) is float else json_line(value) for value in values
                ]
    categories = dict.fromkeys(("run", "task", "metric", "picture"), "category")
    frame = pd.DataFrame(columns).astype({**categories, "score": "float64", "record": "string"})
    content: bytes = frame.to_parquet(None, index=False, compression="zstd")
    return content


def _from_parquet(content: bytes) -> dict[str, PerQuestion]:
    """Return run -> the scores of its questions."""
    from io import BytesIO

    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(BytesIO(content))
    names = frame[["run", "task", "metric"]]
    codes = names.apply(lambda column: column.astype("category").cat.codes)
    starts = np.flatnonzero((codes != codes.shift()).any(axis=1))
    of_questions = {name: _listed(frame[name]) for name in OF_QUESTION if name in frame}
    values = [
        from_json(record) if isinstance(record, str) else None if math.isnan(score) else score
        for score, record in zip(frame["score"].tolist(), frame["record"].tolist(), strict=True)
    ]
    per_question: dict[str, PerQuestion] = {}
    ends = [*starts[1:], len(frame)]
    for start, end, (run, task, metric) in zip(starts, ends, names.iloc[starts].itertuples(index=False), strict=True):
        of_question = {name: column[start:end] for name, column in of_questions.items()}
        of_question = {name: column for name, column in of_question.items() if None not in column}
        scores = per_question.setdefault(run, {}).setdefault(task, of_question)
        if not pd.isna(metric):
            scores[metric] = values[start:end]
    return per_question


def _listed(column: Any) -> list[Any]:
    """Return a column's values, with None for what is missing."""
    values: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return values


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
