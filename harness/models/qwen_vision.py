"""Alias of the vision tower in `harness.models.qwen25vl`, for one release."""

from harness.models.qwen25vl import QwenTower

__all__ = ["QwenTower"]
