"""The processes that `torchrun` or `accelerate launch` start for one run: who this one is, and what all of them know.

Each answers its share of the questions on a GPU of its own; the first one writes and scores.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from harness.core.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

MEET = timedelta(minutes=30)  # imports of a busy machine differ by minutes
WAIT = timedelta(hours=24)  # for the slowest; a process that ended is noticed at once
OTHER_ENDED = "another process of this run has ended"
Result = TypeVar("Result")
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


class Processes:
    """This process (`rank`, and `local` on its machine) among the `count` of its launch."""

    def __init__(self, rank: int = 0, local: int = 0, count: int = 1):
        self.rank, self.local, self.count = rank, local, count
        self._store: Any = None

    @property
    def first(self) -> bool:
        """True for the process that writes, scores and reports."""
        return self.rank == 0

    def gather(self, value: Any = None) -> list[Any]:
        """What each process gives, in their order, once all have come here; UserError if one has ended."""
        if self.count == 1:
            return [value]
        from torch import distributed

        found = [None] * self.count
        with self._together():
            distributed.all_gather_object(found, value)
        return found

    def sum(self, values: "Tensor") -> "Tensor":
        """What the tensors of all processes add up to, once all have come here; UserError if one has ended."""
        if self.count == 1:
            return values
        from torch import distributed

        found = values.cpu()  # gloo's place
        with self._together():
            distributed.all_reduce(found)
        return found.to(values.device)

    def in_turn(self, call: Callable[[], Result]) -> Result:
        """What `call` gives, which the first process makes before the others: it downloads what they then find."""
        if not self.first:
            self.gather()
        result = call()
        if self.first:
            self.gather()
        return result

    def tell(self, line: str) -> None:
        """Print to stderr what went wrong, once for all processes: they often find the same, or end with the first."""
        if self.count == 1 or (self.first if self._store is None else self._is_first_to_tell()):
            print(line, file=sys.stderr, flush=True)

    def _is_first_to_tell(self) -> bool:
        try:
            return bool(self._store.add("told", 1) == 1)
        except (RuntimeError, OSError):  # the process that kept the store is gone
            return self.rank == 1

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            self._meet()
            yield
        except (RuntimeError, OSError) as error:  # of gloo and of the store
            raise UserError(f"{OTHER_ENDED} ({one_line(error)[:120]}): see what it said") from error

    def _meet(self) -> None:
        """Join the others, and have lmms-eval and accelerate take this process for the only one from here on."""
        if self._store is not None:
            return
        from torch import distributed
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, count = next(rendezvous("env://", timeout=MEET))
        except ValueError as error:  # a variable is missing
            launcher = "start several processes with torchrun or accelerate launch"
            raise UserError(f"WORLD_SIZE={self.count}, but {one_line(error)}: {launcher}") from error
        gloo = distributed.PrefixStore("harness", store)
        distributed.init_process_group("gloo", store=gloo, rank=rank, world_size=count, timeout=WAIT)
        # Python would take the group apart after what its threads need, which now and then ends a process by a signal.
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
    """The processes of this launch, as the launcher's environment says; one without a launcher."""
    rank, local, count = (os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if not count.isdecimal() or int(count) < 2:
        return Processes()
    found = Processes(*(int(text) if text.isdecimal() else 0 for text in (rank, local, count)))
    if not found.first:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: one bar is enough
    return found


def only_one(command: str) -> None:
    """UserError if several processes were launched."""
    if (count := launched().count) > 1:
        raise UserError(f"{command} is one process, {count} were launched: start it without torchrun or accelerate")
