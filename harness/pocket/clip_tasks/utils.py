"""Functions of the tasks of clips and places for lmms-eval: those of the first suite."""

from harness.pocket.tasks.utils import doc_to_blank, doc_to_text, doc_to_visual, exact, shuffled

__all__ = ["doc_to_blank", "doc_to_text", "doc_to_visual", "exact", "shuffled"]
