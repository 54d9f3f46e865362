"""What a process does before the module of its command is imported: it imports little itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

HELP = ("-h", "--help")


def install() -> None:
    """Report exceptions that nothing catches, also those of imports, and interrupts."""
    sys.excepthook = _report


def answer_help() -> None:
    """Print the page of a command that gets --help and no setting, and exit: what it imports would take seconds."""
    arguments = sys.argv[1:]
    words = [argument for argument in arguments if argument not in HELP]
    if len(words) == len(arguments) or not all(word.isidentifier() for word in words):
        return
    from harness.core.command import command
    from harness.core.help import is_command

    package, *module = sys.orig_argv[-1 - len(arguments)].removeprefix("-m").split(".")  # as in `python -mharness`
    config_name = "_".join([*module, *words]) or "config"
    if package == "harness" and is_command(config_name):
        sys.argv[1:] = HELP[1:]
        command(config_name, lambda cfg: None, several=True)
        sys.exit()


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from harness.core.last_line import report

    sys.exit(report(error))
