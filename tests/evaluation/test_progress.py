"""How far a sweep is: two bars on a terminal, few lines elsewhere, and a time left that was measured."""

import io
import sys

import pytest

from harness.evaluation.progress import Progress, in_words


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def sweep(clock, jobs, seconds):
    """Answer four questions in each run, each after `seconds`; the first job has a baseline, the second one fails."""
    progress = Progress(clock)
    progress.jobs = jobs
    for job in range(jobs):
        names = ["none-1.0", "random-0.5"] if job == 0 else [f"job{job}"]
        with progress.job():
            progress.expect(4 * len(names))
            for name in names:
                with progress.run(name, 4) as advance:
                    for _ in range(2):
                        clock.now += 2 * seconds
                        advance(2)


def test_a_log_has_a_line_at_the_begin_and_the_end_of_a_run(clock, capsys):
    sweep(clock, 1, 5)
    assert capsys.readouterr().err.splitlines() == [
        "none-1.0: 0 of 4 questions",
        "none-1.0: 4 of 4 questions in 20 s",
        "random-0.5: 0 of 4 questions",
        "random-0.5: 4 of 4 questions in 20 s",
    ]


def test_a_log_of_a_long_sweep_says_how_much_is_left_every_minute(clock, capsys):
    sweep(clock, 3, 60)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 * 4
    # Of 16 questions of a minute each, 2 are answered; in the last run, 14.
    assert lines[1] == "none-1.0: 2 of 4 questions, 2 min left; sweep: 0 of 3 runs, 2 questions answered, 14 min left"
    assert lines[-3] == "job2: 2 of 4 questions, 2 min left; sweep: 2 of 3 runs, 14 questions answered, 2 min left"


def test_a_job_that_fails_is_counted(clock, capsys):
    progress = Progress(clock)
    progress.jobs = 2
    with pytest.raises(ValueError, match="broken"), progress.job():
        raise ValueError("broken")
    with progress.job(), progress.run("b", 4) as advance:
        progress.expect(4)
        clock.now += 60
        advance(1)
    assert "b: 1 of 4 questions, 3 min left; sweep: 1 of 2 runs, 1 questions answered, 3 min" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_terminal_has_a_bar_of_the_run_and_one_of_a_sweep_and_none_is_left(jobs, clock, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    sweep(clock, jobs, 60)
    text = screen.getvalue()
    assert "random-0.5:   0%|" in text
    assert ("sweep: 0 of 3 runs |" in text) == (jobs > 1)
    if jobs > 1:
        assert "2 questions answered, 14 min left" in text
    assert text.split("\r")[-2].strip() == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (6000, "1.7 h")],
)
def test_a_duration_has_one_unit(seconds, words):
    assert in_words(seconds) == words
