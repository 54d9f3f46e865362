"""Functions of the pocket tasks for lmms-eval; scores use lmms-eval's own metrics where they exist."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.metrics import anls
from lmms_eval.tasks.chartqa.utils import relaxed_correctness
from PIL import Image

from harness.pocket import order

Doc = dict[str, Any]


def shuffled(rows: Any) -> Any:
    """Shuffle a split, a `datasets.Dataset`, so that `limit` takes a representative sample."""
    return rows.select(order(len(rows)))


def doc_to_visual(doc: Doc) -> list[Any]:
    """Return the image, or the frames of the video (two frames a second)."""
    if "frames" in doc:
        return [{"type": "video", "url": [frame.convert("RGB") for frame in doc["frames"]]}]
    return [doc["image"].convert("RGB")]


def doc_to_blank(doc: Doc) -> list[Any]:
    """Return blank images of the same sizes, to measure what the questions alone reveal."""
    blank = lambda image: Image.new("RGB", image.size, (245, 245, 245))  # noqa: E731
    if "frames" in doc:
        return [{"type": "video", "url": [blank(frame) for frame in doc["frames"]]}]
    return [blank(doc["image"])]


def doc_to_text(doc: Doc) -> str:
    """Return the question, which includes the answer format."""
    return doc["question"]


def exact(doc: Doc, results: list[str]) -> dict[str, float]:
    """Compare with the answer after trimming and lower-casing."""
    return {"accuracy": float(results[0].strip().lower() == doc["answer"].lower())}


def document(doc: Doc, results: list[str]) -> dict[str, float]:
    """Score with ANLS, as DocVQA does."""
    return {"anls": float(anls([doc["answer"]], [results[0]])["anls"])}


def chart(doc: Doc, results: list[str]) -> dict[str, float]:
    """Score with the relaxed accuracy of ChartQA: numbers within 5 %."""
    return {"relaxed": float(relaxed_correctness(results[0].strip(), doc["answer"]))}
