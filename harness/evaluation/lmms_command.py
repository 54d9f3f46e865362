"""End lmms-eval's own command in one line; it would print the traceback of our model and exit with code 0."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.core.errors import UserError, one_line
from harness.core.last_line import report
from harness.models.calls import HookError
from methods.checks import SelectionError

PROGRAMS = {"lmms-eval", "lmms_eval"}  # the script, and the package of `python -m lmms_eval`


@contextmanager
def one_line_ending() -> Iterator[None]:
    """Report an error within the block and exit, if lmms-eval's command runs it; for any other caller, let it pass."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:  # whatever it is, the command would print its traceback
        if not PROGRAMS & set(Path(sys.argv[0]).parts[-2:]):
            raise
        if isinstance(error, SelectionError | HookError):
            mistake = UserError(one_line(error))
            mistake.__cause__, error = error, mistake
        sys.exit(report(error))
