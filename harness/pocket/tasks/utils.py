"""What the pocket tasks do with a document; scoring uses lmms-eval's own metrics where it has them."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.metrics import anls
from lmms_eval.tasks.chartqa.utils import relaxed_correctness
from PIL import Image

from harness.pocket import order

Doc = dict[str, Any]


def shuffled(rows: Any) -> Any:
    """The rows of a split, a `datasets.Dataset`, so that `limit` takes a fair sample."""
    return rows.select(order(len(rows)))


def doc_to_visual(doc: Doc) -> list[Any]:
    """The picture, or the frames of the video (two frames a second)."""
    if "frames" in doc:
        return [{"type": "video", "url": [frame.convert("RGB") for frame in doc["frames"]]}]
    return [doc["image"].convert("RGB")]


def doc_to_blank(doc: Doc) -> list[Any]:
    """The same sizes without content: what the questions give away by themselves."""
    blank = lambda image: Image.new("RGB", image.size, (245, 245, 245))  # noqa: E731
    if "frames" in doc:
        return [{"type": "video", "url": [blank(frame) for frame in doc["frames"]]}]
    return [blank(doc["image"])]


def doc_to_text(doc: Doc) -> str:
    """The question as it is: the answer format is part of it."""
    return doc["question"]


def exact(doc: Doc, results: list[str]) -> dict[str, float]:
    """Equal after trimming and lower-casing."""
    return {"accuracy": float(results[0].strip().lower() == doc["answer"].lower())}


def document(doc: Doc, results: list[str]) -> dict[str, float]:
    """ANLS as in DocVQA."""
    return {"anls": float(anls([doc["answer"]], [results[0]])["anls"])}


def chart(doc: Doc, results: list[str]) -> dict[str, float]:
    """Relaxed accuracy as in ChartQA: numbers within five percent."""
    return {"relaxed": float(relaxed_correctness(results[0].strip(), doc["answer"]))}
