"""Pruning visual tokens of multimodal LLMs, and measuring honestly what that keeps. Importing this imports no torch."""

from harness.prune import Kept, Pruning, prune

__all__ = ["Kept", "Pruning", "prune"]
