"""Kill -9 at every write of a run: alone, in a sweep that spills to disk, and in either of two processes.

Half of what is written is on the disk then, or all of it under another name. The same command goes on from there, to
the same bytes.
"""

import signal
from functools import partial

import pytest
from fork_server import Forks
from kills import Place, watch
from kinds import some_of, tried
from tiny_models import tiny_folder
from tiny_tasks import write_tiny_tasks

KINDS = {"writing", "renaming"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, fork_server):
    root = tmp_path_factory.mktemp("kills")
    model, tasks = tiny_folder(root), write_tiny_tasks(root / "tasks", 3)
    configured = [f"model.pretrained={model}", "model.batch_size=2", f"tasks.include={tasks}", "tasks=[tiny_stills]"]
    return Place(root, Forks(root, tmp_path_factory.mktemp("said")), ["harness", *configured, "keep=0.5"])


SHAPES = {"alone": ["method=random"], "sweep": ["-m", "method=random,uniform", "share_gb=1e-9"]}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request, place):
    """A command, what it leaves if nobody disturbs it, and the numbers of its writes."""
    shaped = Place(place.root, place.forks, [*place.call, *SHAPES[request.param]])
    file = place.root / f"{request.param}.moments"
    shaped.run(request.param, before=partial(watch, file))
    return shaped, shaped.records(request.param), writes(file)


def writes(moments):
    return [number for number, kind in enumerate(moments.read_text().split(), 1) if kind in KINDS]


def test_of_one_process(shape, tmp_path, request):
    place, whole, numbers = shape
    assert len(numbers) > 20
    for number in some_of(numbers):
        with tried(request):
            runs = tmp_path / str(number)
            place.run(runs, -signal.SIGKILL, partial(watch, tmp_path / "seen", number))
            place.run(runs)
            assert place.records(runs) == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_of_one_of_two_processes(rank, place, tmp_path, request):
    place = Place(place.root, place.forks, [*place.call, *SHAPES["alone"]])
    seen = tmp_path / "moments"
    assert launched(place, tmp_path / "whole", rank, partial(watch, seen)) == [0, 0]
    whole = place.records(tmp_path / "whole")
    numbers = writes(seen)
    assert numbers
    for number in some_of(numbers):
        with tried(request):
            runs = tmp_path / str(number)
            codes = launched(place, runs, rank, partial(watch, tmp_path / "again", number))
            assert codes[rank] == -signal.SIGKILL
            assert codes[1 - rank] in (0, 2)  # it may have been done
            place.run(runs)
            assert place.records(runs) == whole


def launched(place, runs, rank, before):
    """Run in two processes, in one of them after `before`; return their exit codes."""
    commands = place.forks.launch(2, *place.call, f"runs={runs}", before={rank: before})
    return [command.end() for command in commands]
