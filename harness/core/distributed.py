"""The processes that `torchrun` or `accelerate launch` starts for one run.

Each process answers its share of the questions on its own GPU; the first one writes and scores.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from harness.core.console import say
from harness.core.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

JOIN_TIMEOUT = timedelta(minutes=30)  # imports on a busy machine differ by minutes
COLLECTIVE_TIMEOUT = timedelta(hours=24)  # for the slowest process; the end of a process is noticed at once
OTHER_ENDED = "another process of this run has ended"
Result = TypeVar("Result")
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


class LaunchError(UserError):
    """The environment variables of a launch contradict each other, so that no process can speak for all."""


class Processes:
    """This process, its global `rank` and `local` rank, among the `count` processes of the launch."""

    def __init__(self, rank: int = 0, local: int = 0, count: int = 1):
        self.rank, self.local, self.count = rank, local, count
        self._store: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes, scores and reports."""
        return self.rank == 0

    def gather(self, value: Any = None) -> list[Any]:
        """Return the values of all processes in the order of ranks; UserError if a process has ended."""
        if self.count == 1:
            return [value]
        from torch import distributed

        values = [None] * self.count
        with self._together():
            distributed.all_gather_object(values, value)
        return values

    def sum(self, values: "Tensor") -> "Tensor":
        """Return the sum of the tensors of all processes; UserError if a process has ended."""
        if self.count == 1:
            return values
        from torch import distributed

        total = values.cpu()  # gloo reduces on the CPU
        with self._together():
            distributed.all_reduce(total)
        return total.to(values.device)

    def in_turn(self, call: Callable[[], Result]) -> Result:
        """Return `call()`, which the first process runs before the others: it downloads what they then find on disk."""
        if not self.first:
            self.gather()
        result = call()
        if self.first:
            self.gather()
        return result

    def tell(self, line: str, everywhere: bool = False) -> None:
        """Print a line to stderr from one process only, since an error often occurs in all of them.

        With `everywhere`, processes that are not connected yet all print: theirs may be the only error.
        """
        if self.count == 1 or (self.first or everywhere if self._store is None else self._is_first_to_tell()):
            say(line, sys.stderr)

    def _is_first_to_tell(self) -> bool:
        try:
            return bool(self._store.add("told", 1) == 1)
        except (RuntimeError, OSError):  # the process that holds the store has ended
            return self.rank == 1

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            self._join()
            yield
        except (RuntimeError, OSError) as error:  # from gloo or the store
            raise UserError(f"{OTHER_ENDED} ({one_line(error)[:120]}): see what it said") from error

    def _join(self) -> None:
        """Join the process group, and hide the launch from lmms-eval and accelerate, which see a single process."""
        if self._store is not None:
            return
        from torch import distributed
        from torch.distributed.rendezvous import rendezvous

        store, rank, count = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
        gloo = distributed.PrefixStore("harness", store)
        distributed.init_process_group("gloo", store=gloo, rank=rank, world_size=count, timeout=COLLECTIVE_TIMEOUT)
        # Without this, Python destroys what the threads of the group need first, and a signal may end the process.
        atexit.register(_leave)
        self._store = store
        for name in VARIABLES:
            os.environ.pop(name, None)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@cache
def launched() -> Processes:
    """Return the processes of this launch from the environment; a single one without a launcher."""
    rank, local, count = (os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if not count.isdecimal() or int(count) < 2:
        return Processes()
    processes = Processes(*(int(text) if text.isdecimal() else 0 for text in (rank, local, count)))
    if not processes.first:
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it on import
    return processes


def check_launch() -> None:
    """Raise LaunchError unless the environment is that of a single process, or whole, as launchers set it."""
    size = os.environ.get("WORLD_SIZE") or "1"
    remedy = "unset WORLD_SIZE, or start several processes with torchrun or accelerate launch"
    if not size.isdecimal() or int(size) < 1:
        raise LaunchError(f"WORLD_SIZE must be a number of processes, got {size}: {remedy}")
    if int(size) == 1:
        return
    if missing := [name for name in (*VARIABLES[:2], *ADDRESS) if not os.environ.get(name)]:
        raise LaunchError(f"WORLD_SIZE={size} needs {', '.join(missing)}, which this process lacks: {remedy}")
    for name, most in {"RANK": int(size) - 1, "LOCAL_RANK": int(size) - 1, "MASTER_PORT": 65535}.items():
        if not (value := os.environ[name]).isdecimal() or int(value) > most:
            raise LaunchError(f"{name} must be a number up to {most} with WORLD_SIZE={size}, got {value}: {remedy}")


def only_one(command: str) -> None:
    """Raise UserError if several processes were launched."""
    if (count := launched().count) > 1:
        raise UserError(f"{command} is one process, {count} were launched: start it without torchrun or accelerate")
