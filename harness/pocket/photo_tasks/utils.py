"""Functions of the tasks of photographs for lmms-eval; one file holds the questions of all of them."""

from collections.abc import Callable
from typing import Any

from harness.pocket.tasks.utils import doc_to_blank, doc_to_text, doc_to_visual, exact, shuffled

__all__ = ["doc_to_blank", "doc_to_text", "doc_to_visual", "exact"]


def _of(task: str) -> Callable[[Any], Any]:
    """Return the function that keeps the questions of a task, shuffled so that the first are representative."""

    def questions(rows: Any) -> Any:
        return shuffled(rows.select([i for i, name in enumerate(rows["task"]) if name == task]))

    return questions


existence, counting, where, what = (_of(task) for task in ("existence", "counting", "where", "what"))
beside, color, reading = (_of(task) for task in ("beside", "color", "reading"))
