"""Old name of `harness.core.config`, for one release."""

from harness.core.config import shipped

__all__ = ["shipped"]
