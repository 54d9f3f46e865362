"""How long a sweep takes, from a run that has finished: its questions, its seconds, and the operations of both."""

from dataclasses import replace

import pytest

from harness.core.config import ModelConfig, RunConfig, TasksConfig
from harness.evaluation.run_times import Measured, estimate

KNOWN = Measured("m/t/none-1.0", "m", "cpu", {"limit": None}, {"a": 100, "b": 300}, 800.0)


def run(*tasks, model="m", **more):
    metrics = dict.fromkeys(tasks)
    return RunConfig(model=ModelConfig(name=model), tasks=TasksConfig(name="t", metrics=metrics), **more)


@pytest.mark.parametrize(
    ("runs", "known", "seconds"),
    [
        ([(run("a", "b"), 5)], [(KNOWN, 10)], 400),  # two seconds each, at half the operations
        ([(run("a", "b"), 5), (run("a"), 10)], [(KNOWN, 10)], 400 + 200),
        ([(run("a", "b"), None)], [(KNOWN, 10)], 800),  # operations that nobody counted
        ([(run("a", "b"), 5)], [(KNOWN, None)], 800),  # a run outside the sweep
        (
            [(run("a", "b"), 5)],
            [(KNOWN, 10), (replace(KNOWN, seconds=8000.0), None)],
            400,
        ),
        ([(run("a", "b"), 5)], [(KNOWN, 10), (replace(KNOWN, seconds=1600.0), 10)], 800),  # resumed runs look quick
        ([(run("c", limit=8), 10)], [(KNOWN, 10)], 16),
        ([(run("a", limit=8), 10)], [(KNOWN, 10)], 16),
        ([(run("a", questions=["a/3", "a/5"]), 10)], [(KNOWN, 10)], 4),
    ],
)
def test_seconds(runs, known, seconds):
    assert estimate(runs, known).seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("runs", "known"),
    [
        ([], [(KNOWN, 10)]),
        ([(run("a"), 5)], []),
        ([(run("a", model="other"), 5)], [(KNOWN, 10)]),
        ([(run("c"), 5)], [(KNOWN, 10)]),  # how many questions it has, nobody knows
        ([(run("a", limit=0.5), 5)], [(KNOWN, 10)]),
    ],
)
def test_what_nothing_tells_is_not_guessed(runs, known):
    assert estimate(runs, known) is None
