"""Let whatever ends this process take one line; it imports little, so that it can be set before all other imports."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


def install() -> None:
    """Report exceptions that nothing catches, also those of imports, and interrupts."""
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from harness.core.last_line import report

    sys.exit(report(error))
