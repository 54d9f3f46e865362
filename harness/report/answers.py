"""Answers and kept tokens of runs, question by question, small enough to hold a hundred runs in memory."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.models.coordinates import WHOLE, Box, inward
from harness.results.frames import questions
from harness.results.response_log import read_kept, read_responses
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
    order: str | None = None  # kept tokens as they were picked, 16 bits each in base 64, where the run recorded it
    importance: str | None = None  # 0 to 255 for each of the n tokens, in base 64, where the run recorded it
    stages: list[tuple[int, int, str]] | None = None  # of several cuts: layer, tokens left, n bits in base 64
    seconds: list[float] = field(default_factory=list)  # of a temporal step of each video
    target: list[float] | None = None  # box of what is asked about, in shares of what the model is shown
    box: list[float] | None = None  # that of the answer

    def kept(self) -> np.ndarray | None:
        """Which tokens were kept, as booleans [n]."""
        return None if self.mask is None else np.unpackbits(np.frombuffer(self.mask, np.uint8), count=self.n) > 0


def read(result: Result) -> dict[Question, Answer]:
    """Read the answers of a finished run; none if only its scores are left, as in committed results."""
    if not all((result.folder / name).is_file() for name in (KEPT, RESPONSES)):
        return {}
    responses = {line["key"]: line for line in read_responses(result.folder, AGAIN)}
    answers: dict[Question, Answer] = {}
    for line in read_kept(result.folder, AGAIN):
        if line["key"] not in responses:
            continue
        response, view = responses[line["key"]], line.get("view", WHOLE)
        names_tokens = line["kept"] or not line["k"]
        mask = pack(line["kept"], line["n"]) if names_tokens else None
        order = text(np.array(line["order"], "<u2").tobytes()) if "order" in line else None
        stages = [
            (stage["layer"], len(stage["kept"]), base64.b64encode(pack(stage["kept"], line["n"])).decode())
            for stage in line.get("stages", [])
        ]
        counts = (line["n"], line["k"], line["grids"], mask, line.get("shown", []), order, line.get("importance"))
        seconds = [video["seconds_per_step"] for video in line.get("videos", [])]
        boxes = [_within(view, box) for box in (line.get("target"), response.get("box"))]
        answer = Answer(response["response"], *counts, stages or None, seconds, *boxes)
        answers.setdefault((line["task"], line["doc_id"]), answer)
    return answers


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
    values = questions([result])[result.hash]
    return dict(zip(values.index.to_list(), values.to_list(), strict=True))
