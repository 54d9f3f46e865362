"""How far a sweep and the run in it are: a bar each on a terminal, lines of a log elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.core.console import say
from harness.core.distributed import launched

EVERY = 60.0  # seconds between two lines of a log
Show = Callable[[int, float], None]  # takes how many questions of a run are answered, and how many seconds are left


def in_words(seconds: float) -> str:
    """Return a duration in the unit that suits it, as "40 s", "12 min" or "3.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


class Progress:
    """The jobs of a sweep and the questions that they have answered; a sweep of one job is shown as a run alone.

    The time left is that of a question so far, for all questions left: a job that has not begun is taken to ask as many
    as the present run. Jobs whose runs are finished already ask none, so that a sweep may end earlier.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.jobs = 1
        self._clock = clock
        self._since: float | None = None  # when the first question was asked
        self._ended = 0  # jobs
        self._answered = 0  # questions of all runs
        self._left = 0  # questions of the present job

    @contextmanager
    def job(self) -> Iterator[None]:
        """Count a job, however it ends."""
        try:
            yield
        finally:
            self._ended += 1

    def expect(self, questions: int) -> None:
        """Note how many questions the present job will ask in all its runs."""
        self._left = questions

    @contextmanager
    def run(self, name: str, questions: int) -> Iterator[Callable[[int], None]]:
        """Show a run of so many questions; the block calls what it gets with the number of those just answered."""
        if not launched().first:
            yield lambda count: None
            return
        began, done = self._clock(), 0
        self._since = began if self._since is None else self._since

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._answered += count
            self._left -= count
            show(done, (self._clock() - began) / max(done, 1) * (questions - done))

        with (self._bars if sys.stderr.isatty() else self._lines)(name, questions) as show:
            yield advance

    def _of_sweep(self, questions: int) -> str:
        """Return what was answered and how long the rest will take."""
        assert self._since is not None
        left = self._left + (self.jobs - self._ended - 1) * questions
        seconds = (self._clock() - self._since) / max(self._answered, 1) * max(left, 0)
        return f"{self._answered} questions answered, {in_words(seconds)} left"

    @contextmanager
    def _bars(self, name: str, questions: int) -> Iterator[Show]:
        """Show two bars within the block; no bar is left when the run's table is printed."""
        from tqdm import tqdm

        several = self.jobs > 1
        columns = shutil.get_terminal_size().columns - 1  # also of a terminal that does not know its width
        form = {"file": sys.stderr, "leave": False, "disable": False, "ncols": columns}
        of_sweep = f"sweep: {self._ended} of {self.jobs} runs"
        whole = tqdm(
            total=self.jobs,
            initial=self._ended,
            desc=of_sweep,
            bar_format="{desc} |{bar}|",
            **{**form, "disable": not several},
        )
        with whole, tqdm(total=questions, desc=name, unit=" questions", position=int(several), **form) as bar:

            def show(done: int, left: float) -> None:
                bar.update(done - bar.n)
                whole.set_description_str(f"{of_sweep}, {self._of_sweep(questions)}")

            yield show

    @contextmanager
    def _lines(self, name: str, questions: int) -> Iterator[Show]:
        """Print a line when the run begins, when it has ended, and every minute in between."""
        began = last = self._clock()
        answered = 0
        of_sweep = f"; sweep: {self._ended} of {self.jobs} runs, " if self.jobs > 1 else ""
        say(f"{name}: 0 of {questions} questions", sys.stderr)

        def show(done: int, left: float) -> None:
            nonlocal last, answered
            answered = done
            if self._clock() - last >= EVERY:
                last = self._clock()
                whole = f"{of_sweep}{self._of_sweep(questions)}" if of_sweep else ""
                say(f"{name}: {done} of {questions} questions, {in_words(left)} left{whole}", sys.stderr)

        yield show
        say(f"{name}: {answered} of {questions} questions in {in_words(self._clock() - began)}", sys.stderr)
