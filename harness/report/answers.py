"""Answers and kept tokens of runs, question by question, small enough to hold a hundred runs in memory."""

import base64
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np

from harness.models.coordinates import WHOLE, Box, inward
from harness.results.frames import asked, numbers
from harness.results.response_log import read_kept, read_responses
from harness.results.result import Result
from harness.results.run_folder import AGAIN, KEPT, RESPONSES

RIGHT = 0.5  # a question counts as answered from this score on; below it ANLS, too, calls an answer wrong

RARE = frozenset(("shown", "order", "importance", "stages", "videos", "target", "box"))  # keys of lines

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
    order: str | None = None  # kept tokens as they were picked, 16 bits each in base 64, where the run recorded it
    importance: str | None = None  # 0 to 255 for each of the n tokens, in base 64, where the run recorded it
    stages: list[tuple[int, int, str]] | None = None  # of several cuts: layer, tokens left, n bits in base 64
    seconds: list[float] = field(default_factory=list)  # of a temporal step of each video
    target: list[float] | None = None  # box of what is asked about, in shares of what the model is shown
    box: list[float] | None = None  # that of the answer

    def kept(self) -> np.ndarray | None:
        """Which tokens were kept, as booleans [n]."""
        return None if self.mask is None else np.unpackbits(np.frombuffer(self.mask, np.uint8), count=self.n) > 0


@dataclass
class Recorded(Mapping[Question, Answer]):
    """One run's answers by question, as columns: a hundred runs of 40,000 questions fit into memory.

    `rare` has the fields of an Answer that few questions have.
    """

    rows: dict[Question, int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    sizes: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # n and k [Q, 2]
    named: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # whether the run names its tokens [Q]
    grids: list[list[list[int]]] = field(default_factory=list)
    bits: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))  # masks of all rows, each of whole bytes
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # where a row begins in `bits`
    rare: dict[Question, dict[str, Any]] = field(default_factory=dict)

    def __getitem__(self, question: Question) -> Answer:
        row = self.rows[question]
        n, k = map(int, self.sizes[row])
        mask = self.bits[self.starts[row] : self.starts[row + 1]].tobytes() if self.named[row] else None
        return Answer(self.texts[row], n, k, self.grids[row], mask, **self.rare.get(question, {}))

    def __iter__(self) -> Iterator[Question]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def partly_kept(self) -> set[Question]:
        """Return the questions of which the run names the tokens, kept some and dropped others."""
        n, k = self.sizes.T
        return set(compress(self.rows, self.named & (k > 0) & (k < n)))

    def in_detail(self) -> set[Question]:
        """Return the questions of which more than the kept tokens is recorded."""
        return {question for question, fields in self.rare.items() if fields.keys() & {"order", "importance"}}


def read(result: Result, like: Recorded | None = None) -> Recorded:
    """Read the answers of a finished run; none if only its scores are left, as in committed results.

    `like` is a run that probably answers the same questions, and then holds them for both.
    """
    recorded = Recorded()
    if not all((result.folder / name).is_file() for name in (KEPT, RESPONSES)):
        return recorded
    responses = {line["key"]: line for line in read_responses(result.folder, AGAIN)}
    equal: dict[str, list[list[int]]] = {}  # grids: most pictures of a benchmark have the same
    kept, counts, sizes = array("q"), array("q"), array("q")
    for line in read_kept(result.folder, AGAIN):
        question = line["task"], line["doc_id"]
        if line["key"] not in responses or question in recorded.rows:
            continue
        response = responses[line["key"]]
        recorded.rows[question] = len(recorded.rows)
        recorded.texts.append(response["response"])
        sizes.extend((line["n"], line["k"]))
        recorded.grids.append(equal.setdefault(str(line["grids"]), line["grids"]))
        kept.extend(line["kept"])
        counts.append(len(line["kept"]))
        if not (RARE.isdisjoint(line) and RARE.isdisjoint(response)):
            recorded.rare[question] = _rare(line, response)
    if like is not None and like.rows == recorded.rows:
        recorded.rows = like.rows
    recorded.sizes = np.array(sizes, np.int64).reshape(-1, 2)
    recorded.named = (np.array(counts) > 0) | (recorded.sizes[:, 1] == 0)
    recorded.starts = np.concatenate([[0], np.cumsum((recorded.sizes[:, 0] + 7) // 8)])
    mask = np.zeros(8 * recorded.starts[-1], np.uint8)
    mask[np.repeat(8 * recorded.starts[:-1], counts) + np.array(kept, np.int64)] = 1
    recorded.bits = np.packbits(mask)
    return recorded


def _rare(line: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an Answer that few questions have."""
    view = line.get("view", WHOLE)
    stages = [
        (stage["layer"], len(stage["kept"]), base64.b64encode(pack(stage["kept"], line["n"])).decode())
        for stage in line.get("stages", [])
    ]
    found = {
        "shown": line.get("shown"),
        "order": text(np.array(line["order"], "<u2").tobytes()) if "order" in line else None,
        "importance": line.get("importance"),
        "stages": stages,
        "seconds": [video["seconds_per_step"] for video in line.get("videos", [])],
        "target": _within(view, line.get("target")),
        "box": _within(view, response.get("box")),
    }
    return {name: value for name, value in found.items() if value}


def _within(view: Box, box: Box | None) -> list[float] | None:
    return None if box is None else [round(share, 4) for share in inward(box, view)]


def pack(kept: Sequence[int], n: int) -> bytes:
    """Pack indices into n bits, the first token in the highest bit of the first byte."""
    mask = np.zeros(n, np.uint8)
    mask[list(kept)] = 1
    return np.packbits(mask).tobytes()


def text(data: bytes | None) -> str | None:
    """Encode bytes in base 64, as the page holds them."""
    return None if data is None else base64.b64encode(data).decode()


def scores(result: Result) -> dict[Question, float]:
    """Return the primary metric of every question; NaN where a task keeps no number, empty for runs without scores."""
    if not result.has_questions:
        return {}
    return dict(zip(asked(result), numbers(result), strict=True))
