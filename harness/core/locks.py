"""Exclusive locks between processes, also on other nodes, and on file systems without `flock`.

Lustre without `-o flock` and some NFS servers refuse `flock`. There, a lock is a file with the owner's host and
process, whose time stamp the owner renews: a lease. A lease that nobody renews for `LEASE_SECONDS` may be taken by
another process. One that was suspended for longer has then lost its lock, and writes nothing more. The clocks of the
nodes and of the file server have to agree within a minute.
"""

import errno
import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.core.console import say
from harness.core.errors import as_user_error
from harness.core.files import LOST_LOCKS, writing

LEASE_SECONDS = 120.0
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what file systems without locks say


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Hold the lock `file`, which is empty and stays; say that `what` is waited for while another process holds it."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a+")  # NFS passes a lock on to other nodes only for a file open for writing
    with stream:
        if _flock(stream, what):
            yield
        else:
            with _lease(file.with_suffix(".lease"), what):
                yield


def is_locked(file: Path) -> bool:
    """Return whether a process holds the lock, on any node whose locks are visible here."""
    if not file.is_file():
        return False
    with as_user_error(OSError, f"cannot read the lock {file}"), file.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lease = file.with_suffix(".lease")
            return lease.is_file() and time.time() - lease.stat().st_mtime < LEASE_SECONDS
    return False


def _flock(stream: IO[str], what: str) -> bool:
    """Lock an open file, and wait where needed; False if its file system has no locks."""
    with as_user_error(OSError, f"cannot lock {stream.name}"):
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _tell(what)
                fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
    return True


@contextmanager
def _lease(file: Path, what: str) -> Iterator[None]:
    from filelock import SoftFileLease, Timeout  # here, since its import takes longer than all locks of a run

    def lost(_: object) -> None:  # called by the thread that renews the lease
        cause = f"this process did not renew {file} for {LEASE_SECONDS:.0f} s, and another one may have taken it"
        LOST_LOCKS[file] = f"{what} is no longer locked ({cause}): the same command goes on from here"

    lease = SoftFileLease(file, lease_duration=LEASE_SECONDS, poll_interval=0.2, on_compromise=lost)
    with as_user_error(OSError, f"cannot lock {file}"):
        try:
            lease.acquire(timeout=0.5)  # finds and removes the lease of a process that has ended
        except Timeout:
            _tell(what)
            lease.acquire()
    try:
        yield
    finally:
        lease.release()
        LOST_LOCKS.pop(file, None)


def _tell(what: str) -> None:
    say(f"waiting for another process that computes {what}", sys.stderr)
