"""The last line of defence: whatever ends a command takes one line, and a traceback goes to a file."""

import errno
import os
import re
import shlex
import signal
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from harness.core.distributed import LaunchError, launched
from harness.core.errors import UserError, one_line
from methods import PRIVATE

SHOW = "HARNESS_TRACEBACK"  # environment variable: print tracebacks
MISTAKE, UNFORESEEN, INTERRUPTED = 2, 1, 128 + signal.SIGINT  # exit codes
LONGEST = 300  # characters of a message: some libraries fill a page
UNPARSED = re.compile(
    r"(?:invalid literal for int\(\) with base 10|could not convert string to float): (.*)", re.DOTALL
)
ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / name}{os.sep}" for name in ("harness", "methods"))
LIBRARIES = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")})
# What an operating system says of a path that a user gave, or of the disk below it
OF_PATHS = {
    *(errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR),
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
}

OF_DISKS = {errno.ENOSPC, errno.EDQUOT}  # while a file is written, when the system no longer names it


def report(error: BaseException) -> int:
    """Print in one line what ended a command or a job, and return the exit code."""
    line, code = _line(error)
    try:
        if os.environ.get(SHOW, "0") not in ("", "0"):
            traceback.print_exception(error)
        launched().tell(f"error: {line}", everywhere=code == UNFORESEEN or isinstance(error, LaunchError))
    except OSError:
        pass  # stderr is closed or full: only the exit code is left to say it
    return code


def _line(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        place = next((place for place, module in _frames(error) if module.startswith(PRIVATE)), None)
        return f"interrupted{f' in {place}' if place else ''}", INTERRUPTED
    if isinstance(error, UserError):
        return one_line(error), MISTAKE
    if isinstance(error, OSError) and error.errno in OF_PATHS and error.filename is not None:
        path = os.fsdecode(error.filename)
        shown = path if len(path) <= LONGEST else f"{path[:LONGEST]}..."
        return f"cannot use {shown} ({error.strerror}): choose another path, or change this one", MISTAKE
    if isinstance(error, OSError) and error.errno in OF_DISKS:
        return f"cannot write a file ({error.strerror}): make room, and the same command goes on from here", MISTAKE
    if _out_of_memory(error):
        return f"out of memory ({one_line(error)[:LONGEST]}): ask for less at once, or use a larger machine", MISTAKE
    if variable := _variable(error):
        return f"a library expects a number in the environment, got {variable}: change or unset it", MISTAKE
    *_, (place, _) = ("an import", ""), *_frames(error)
    message = f"{type(error).__name__} in {place}: {one_line(error)[:LONGEST]}"
    return f"unforeseen {message} ({_kept(error)}; {SHOW}=1 prints it)", UNFORESEEN


def exited_by_others(stop: SystemExit) -> bool:
    """Return whether a method, a task or a library other than Hydra called exit(): nothing would say that it did."""
    standard = (f"{sysconfig.get_path('stdlib')}{os.sep}", "<")
    site = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib"))  # lies in the former
    frames = [frame for frame, _ in traceback.walk_tb(stop.__traceback__)]
    for frame in reversed(frames):
        file = frame.f_code.co_filename
        if file.startswith(OURS):
            return False
        if file.startswith(site) or not file.startswith(standard):
            return str(frame.f_globals["__name__"]).partition(".")[0] != "hydra"
    return False


def _out_of_memory(error: BaseException) -> bool:
    """Return whether Python, a GPU or the CPU of torch, which has no type for it, has no memory left."""
    of_torch = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or of_torch


def _frames(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield "file:line" and the module of every frame outside of libraries, the innermost last."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not _of_library(file := frame.f_code.co_filename):
            yield f"{file.removeprefix(f'{ROOT}{os.sep}')}:{line}", frame.f_globals["__name__"]


def _of_library(file: str) -> bool:
    return not file.startswith(OURS) and file.startswith((*LIBRARIES, "<"))


def _variable(error: BaseException) -> str | None:
    """Return "NAME=value" of the environment variable that a library could not parse while it was imported."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    imported = any(code.co_name == "<module>" and _of_library(code.co_filename) for code in codes)
    unparsed = UNPARSED.fullmatch(str(error)) if imported and isinstance(error, ValueError) else None
    variables = (f"{name}={value}" for name, value in os.environ.items() if unparsed and repr(value) == unparsed[1])
    return next(variables, None)


def _kept(error: BaseException) -> str:
    """Write the traceback to a new file that only the user can read, and return where it is."""
    text = f"{shlex.join(sys.orig_argv)}\n\n{''.join(traceback.format_exception(error))}"
    try:
        descriptor, file = tempfile.mkstemp(".txt", "harness-traceback-")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError as no_place:
        return f"its traceback could not be written: {no_place.strerror}"
    return f"its traceback is in {file}"
