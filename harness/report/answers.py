"""What runs answered and which tokens they kept, question by question, small enough to hold a hundred runs at once."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.core.files import read_jsonl
from harness.results.frames import questions
from harness.results.result import Result
from harness.results.run_folder import AGAIN, KEPT, RESPONSES

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
    texts = {line["key"]: line["response"] for line in read_jsonl(said, AGAIN)}
    found: dict[Question, Answer] = {}
    for line in read_jsonl(kept, AGAIN):
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


def scores(result: Result) -> dict[Question, float]:
    """The primary metric of every question; NaN where a task keeps no number for it, nothing for runs without them."""
    if not result.has_questions:
        return {}
    each = questions([result])[result.hash]
    return dict(zip(each.index.to_list(), each.to_list(), strict=True))
