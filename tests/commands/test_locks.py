"""Locks keep two processes apart, with `flock` and on file systems that refuse it."""

import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from harness.core import locks
from harness.core.errors import UserError
from harness.core.files import LOST_LOCKS, append, write_atomic
from harness.core.locks import is_locked, locked

WAITING = "waiting for another process that computes the run\n"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "runs" / ".run.lock"


def refuse(monkeypatch, code):
    def flock(stream, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def refusing(request, monkeypatch):
    """A file system without locks."""
    refuse(monkeypatch, request.param)


@pytest.fixture
def quick(monkeypatch):
    """A lease that ends within a second."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.6)


def hold(lock, entered, leave):
    with locked(lock, "the run"):
        entered.set()
        assert leave.wait(60)


def holding(lock):
    """Another process that holds a lock, and the event on which it leaves."""
    entered, leave = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(lock, entered, leave))
    process.start()
    assert entered.wait(60)
    return process, leave


def test_without_flock_one_process_waits_for_the_other_and_says_so(lock, refusing, capfd):
    process, leave = holding(lock)
    assert is_locked(lock)
    waiting, entered = FORK.Event(), FORK.Event()
    waiting.set()
    second = FORK.Process(target=hold, args=(lock, entered, waiting))
    second.start()
    assert not entered.wait(1.5)
    leave.set()
    assert entered.wait(60)
    for each in (process, second):
        each.join(60)
        assert each.exitcode == 0
    assert capfd.readouterr().err == WAITING
    assert not is_locked(lock)
    assert [path.name for path in lock.parent.iterdir()] == [lock.name]  # no lease is left


def test_who_waits_shows_control_characters_of_a_path(lock, monkeypatch, capfd):
    flock, refused = fcntl.flock, []

    def once_busy(stream, operation):
        if operation & fcntl.LOCK_NB and not refused:
            refused.append(operation)
            raise BlockingIOError
        flock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", once_busy)
    with locked(lock, "runs/\x1b[2J\nerror: none"):
        pass
    assert capfd.readouterr().err == "waiting for another process that computes runs/\\x1b[2J\\nerror: none\n"


def test_the_lease_of_a_process_that_was_killed_is_taken_at_once(lock, refusing, capfd):
    process, _ = holding(lock)
    process.kill()
    process.join()
    with locked(lock, "the run"):
        pass
    assert capfd.readouterr().err == ""


def test_the_lease_of_a_dead_owner_on_another_node_is_taken_when_it_ends(lock, refusing, quick, capfd, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "another-node")
        process, _ = holding(lock)
    process.kill()
    process.join()
    (lease,) = lock.parent.glob("*.lease")
    assert "host=another-node" in lease.read_text()
    with locked(lock, "the run"):
        assert time.time() - lease.stat().st_mtime < 60
    assert not is_locked(lock)


def test_a_process_that_lost_its_lease_writes_nothing_more(lock, refusing, quick, tmp_path):
    with locked(lock, "the run"):
        write_atomic(tmp_path / "file", "before")
        (lease,) = lock.parent.glob("*.lease")
        lease.unlink()  # as another process does when it takes an expired lease
        while not LOST_LOCKS:
            time.sleep(0.01)
        for write, name in ((write_atomic, "file"), (append, "log")):
            with pytest.raises(UserError, match=r"^the run is no longer locked \(.*goes on from here$"):
                write(tmp_path / name, "after")
    assert (tmp_path / "file").read_text() == "before"
    assert not (tmp_path / "log").exists()
    write_atomic(tmp_path / "file", "another run of the sweep")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_lock_that_fails_is_one_line(code, lock, monkeypatch):
    refuse(monkeypatch, code)
    with pytest.raises(UserError, match=rf"cannot lock {lock}: .*{os.strerror(code)}"), locked(lock, "the run"):
        pass


def test_nothing_is_imported_for_a_lease_where_flock_works(lock):
    code = "import sys; from pathlib import Path; from harness.core.locks import locked\n"
    code += f"with locked(Path({str(lock)!r}), ''): print('filelock' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
