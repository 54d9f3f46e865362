"""What runs answered and which tokens they kept, question by question, small enough to hold a hundred runs at once."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.evaluate import value
from harness.store import KEPT, RESPONSES, SCORES
from harness.tables import Result

RIGHT = 0.5  # a question counts as answered from this score on; below it ANLS, too, calls an answer wrong

Question = tuple[str, int]  # task, doc_id


@dataclass(frozen=True)
class Answer:
    """One run's answer to one question, and what it kept of the picture."""

    text: str
    n: int  # visual tokens before
    k: int  # and after
    grids: list[list[int]]  # [t, h, w] in tokens of each image or video
    mask: bytes | None  # n bits, one for each token that was kept; None where the run names no tokens (`resize`)
    shown: list[list[int]] = field(default_factory=list)  # grids of the smaller images that `resize` showed instead

    def kept(self) -> np.ndarray | None:
        """Which tokens were kept, as booleans [n]."""
        return None if self.mask is None else np.unpackbits(np.frombuffer(self.mask, np.uint8), count=self.n) > 0


def read(result: Result) -> dict[Question, Answer]:
    """The answers of a finished run; empty where only its scores are left, as in committed results."""
    kept, said = result.folder / KEPT, result.folder / RESPONSES
    if not (kept.is_file() and said.is_file()):
        return {}
    texts = {line["key"]: line["response"] for line in _lines(said)}
    found: dict[Question, Answer] = {}
    for line in _lines(kept):
        if line["key"] not in texts:
            continue
        known = line["kept"] or not line["k"]
        mask = pack(line["kept"], line["n"]) if known else None
        about = (line["n"], line["k"], line["grids"], mask, line.get("shown", []))
        found.setdefault((line["task"], line["doc_id"]), Answer(texts[line["key"]], *about))
    return found


def pack(kept: Sequence[int], n: int) -> bytes:
    """Indices as n bits, the first token in the highest bit of the first byte."""
    mask = np.zeros(n, np.uint8)
    mask[list(kept)] = 1
    return np.packbits(mask).tobytes()


def text(data: bytes | None) -> str | None:
    """Bytes as a page carries them."""
    return None if data is None else base64.b64encode(data).decode()


def scores(result: Result) -> dict[Question, float | None]:
    """The primary metric of every question; None where a task scores no single question with a number."""
    file = result.folder / SCORES
    if not file.is_file():
        return {}
    try:
        tasks = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: repeat the run with force=true") from error
    found: dict[Question, float | None] = {}
    for task, columns in tasks.items():
        for row, doc_id in enumerate(columns["doc_id"]):
            found[task, doc_id] = _score({k: v[row] for k, v in columns.items()}, result.metrics["primary"][task])
    return found


def _score(row: dict[str, Any], metric: str | None) -> float | None:
    numbers = {key: float(it) if isinstance(it, int | float) else it for key, it in row.items()}
    try:
        return value(numbers, metric)
    except UserError:  # a record, which only the task's own aggregation reads
        return None


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{file} is damaged in line {number}: repeat the run with force=true") from error
