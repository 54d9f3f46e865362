"""A run takes the cores that are idle when it begins."""

import psutil
import pytest
import torch

from harness.models import threads
from harness.models.threads import leave_busy_cores


@pytest.fixture
def taken(monkeypatch):
    """The numbers of threads that are set, on a machine of four cores with four threads."""
    numbers = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    return numbers


@pytest.mark.parametrize(
    ("shares", "number"),
    [([0, 0, 0, 0], None), ([20, 10, 0, 5], None), ([100, 0, 0, 0], 3), ([55, 50, 50, 60], 2), ([100] * 4, 1)],
)
def test_as_many_threads_as_cores_are_idle(taken, monkeypatch, capsys, shares, number):
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: [*shares, 100, 100])  # two are not ours
    leave_busy_cores()
    assert taken == ([] if number is None else [number])
    note = capsys.readouterr().err
    assert note == "" if number is None else f"so torch takes {number} of 4 threads; OMP_NUM_THREADS=4" in note


def test_who_says_how_many_gets_them(taken, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: pytest.fail("nobody needs to know"))
    leave_busy_cores()
    assert taken == []
