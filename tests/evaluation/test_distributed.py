"""A run of several processes ends with the bytes of one, whatever their number and whoever of them is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from fork_server import Command, Forks, counting, record
from tiny_models import tiny_folder
from tiny_tasks import write_tiny_tasks

from harness.core import command as cli
from harness.core import distributed
from harness.core.config import ModelConfig
from harness.core.distributed import Processes
from harness.core.errors import UserError
from harness.evaluation import identity, lmms_model
from harness.models import loading

QUESTIONS, BATCH = 13, 2  # seven batches, the last one of a single question, and two of the four clips


@dataclass
class Place:
    root: Path
    model: Path
    tasks: Path
    forks: Forks

    def call(self, runs: str, *more: str) -> list[str]:
        tasks = ["tasks=[tiny_stills,tiny_clips]", f"tasks.include={self.tasks}", f"runs={runs}"]
        batch = f"model.batch_size={BATCH}"
        return ["harness", f"model.pretrained={self.model}", batch, *tasks, "method=random", "keep=0.5", *more]

    def folders(self, runs: str) -> list[Path]:
        return sorted(path.parent for path in (self.root / runs).rglob("run.json"))

    def records(self, runs: str) -> dict[str, dict[str, bytes]]:
        return {folder.name: record(folder) for folder in self.folders(runs)}


@pytest.fixture(scope="module")
def place(tmp_path_factory, fork_server):
    root = tmp_path_factory.mktemp("launch")
    forks = Forks(root, tmp_path_factory.mktemp("said"))
    return Place(root, tiny_folder(root), write_tiny_tasks(root / "tasks", QUESTIONS), forks)


@pytest.fixture(scope="module")
def alone(place):
    """What one process prints and leaves."""
    return place.forks.run(*place.call("alone")), place.records("alone")


def ended(commands: list[Command]) -> list[int]:
    return [command.end() for command in commands]


def errors(commands: list[Command]) -> list[str]:
    return [line for command in commands for line in command.errors]


def without_place(report: dict) -> dict:
    return {**report, "run": Path(report["run"]).name}


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_leave_the_bytes_of_one(count, place, alone):
    one, expected = alone
    runs = f"runs{count}"
    commands = place.forks.launch(count, *place.call(runs))
    assert ended(commands) == [0] * count, commands[0].err
    assert place.records(runs) == expected
    assert set(expected["random-0.5-" + one.report["run"][-8:]]) == {
        *("responses.jsonl", "kept.jsonl", "scores.json", "metrics.json", "identity")
    }
    assert without_place(commands[0].report) == without_place(one.report)
    assert [command.out for command in commands[1:]] == [""] * (count - 1)
    for folder in place.folders(runs):  # each process proved its own decoding
        assert json.loads((folder / "DONE").read_text())["decoding"]["proof"]["batches"] >= count


def test_more_processes_than_batches(place, alone):
    one = place.forks.run(*place.call("one", "limit=2", "method=none", "keep=null"))
    commands = place.forks.launch(3, *place.call("three", "limit=2", "method=none", "keep=null"))
    assert ended(commands) == [0, 0, 0], commands[0].err
    assert place.records("three") == place.records("one")
    assert without_place(commands[0].report) == without_place(one.report)


def test_a_killed_launch_is_continued_by_any_number_of_processes(place, alone):
    """Three processes of which one is killed, then two of which the first is, then one: nothing is answered twice."""
    _, expected = alone
    call = place.call("killed")
    heard = place.root / "heard"
    commands = place.forks.launch(3, *call, before={r: partial(counting, heard, 3 * (r == 1)) for r in range(3)})
    assert ended(commands) == [2, -signal.SIGKILL, 2]
    assert len(errors(commands)) == 1
    assert "another process of this run has ended" in errors(commands)[0]
    commands = place.forks.launch(2, *call, before={r: partial(counting, heard, 3 * (r == 0)) for r in range(2)})
    assert ended(commands) == [-signal.SIGKILL, 2]
    assert len(errors(commands)) == 1
    (pruned,) = (folder for folder in place.folders("killed") if folder.name.startswith("random"))
    assert not (pruned / "DONE").exists()
    assert (pruned / "responses.1.jsonl").exists()
    last = place.forks.run(*call, before=partial(counting, heard))
    assert last.err.count("Traceback") == 0
    assert place.records("killed") == expected
    keys = heard.read_text().split()
    assert len(keys) == len(set(keys)) == 2 * (QUESTIONS + 4)


def test_a_mistake_is_said_once_and_ends_all(place, alone):
    commands = place.forks.launch(2, *place.call("wrong", "seed=-1"))
    assert ended(commands) == [2, 2]
    assert [line[:30] for line in errors(commands)] == ["error: seed must lie between 0"]


def failing() -> None:
    def fail(*_):
        raise UserError("this machine has a problem")

    loading.load = fail


@pytest.mark.parametrize(("rank", "agent"), [(0, False), (1, True)])
def test_a_process_that_fails_alone_ends_the_others(rank, agent, place, alone):
    """Also where no launcher ends them: nobody waits for what will never come."""
    commands = place.forks.launch(2, *place.call("failed"), before={rank: failing}, agent=agent)
    assert ended(commands) == [2, 2]
    said = errors(commands)
    assert "error: this machine has a problem" in said
    assert len(said) == 1 or not agent
    assert not list((place.root / "failed").rglob("DONE"))


def crashing() -> None:
    def crash(*_):
        raise ZeroDivisionError("nobody foresaw it")

    loading.load = crash


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_crashes_alone_says_where_its_traceback_is(rank, place, alone):
    commands = place.forks.launch(2, *place.call("crashed"), before={rank: crashing})
    assert sorted(ended(commands)) == [1, 2]
    (said,) = errors(commands)
    assert said.startswith(f"error: unforeseen ZeroDivisionError in tests/evaluation/{Path(__file__).name}:")
    (file,) = re.findall(r"its traceback is in (\S+);", said)
    assert "nobody foresaw it" in Path(file).read_text()
    Path(file).unlink()


def other_versions() -> None:
    identity._version = lambda package: "0.0"


def test_processes_that_would_answer_otherwise_are_refused(place, alone):
    commands = place.forks.launch(2, *place.call("differ"), before={1: other_versions})
    assert ended(commands) == [2, 2]
    assert len(errors(commands)) == 1
    assert "differ in their kind of GPU or in the versions" in errors(commands)[0]


def test_a_sweep_of_several_processes(place, alone):
    _, expected = alone
    commands = place.forks.launch(2, "harness", "-m", *place.call("swept", "method=random,uniform")[1:])
    assert ended(commands) == [0, 0], commands[0].err
    reports = [json.loads(line) for line in commands[0].out.splitlines() if line.startswith("{")]
    assert [report["method"] for report in reports[:-1]] == ["random", "uniform"]
    assert reports[-1] == {"finished": 2, "failed": [], "runs": ["swept"]}
    found = place.records("swept")
    assert len(found) == 3
    assert expected.items() <= found.items()


def test_torchrun_itself(place, alone):
    """The launcher, two fresh interpreters, and what is on the screen: lines of ours alone, one report, last."""
    _, expected = alone
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    env = {**os.environ, "HF_HOME": str(place.root / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    runs = subprocess.run(
        [*call, *place.call("torchrun")],
        cwd=place.root,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert runs.returncode == 0, runs.stderr
    assert place.records("torchrun") == expected
    assert json.loads(runs.stdout.splitlines()[-1])["method"] == "random"
    assert runs.stdout.count('{"run"') == 1
    shown = [line for line in runs.stderr.splitlines() if "torch" not in line]  # what torchrun itself says
    assert [re.sub(r"\d+", "N", line) for line in shown] == [
        f"{name}: N of N questions{end}" for name in ("none-N.N", "random-N.N") for end in ("", " in N s")
    ]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 0, 1)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 0, 1)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, (3, 1, 4)),
    ],
)
def test_who_a_process_is(variables, expected, monkeypatch):
    for name in (*distributed.VARIABLES, "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = distributed.launched.__wrapped__()
    assert (found.rank, found.local, found.count) == expected
    assert os.environ.pop("TQDM_DISABLE", None) == ("1" if found.rank else None)


@pytest.mark.parametrize(
    ("device", "local", "gpus", "expected"),
    [
        ("auto", 1, 2, "cuda:1"),
        ("cuda", 0, 2, "cuda:0"),
        ("auto", 1, 0, "cpu"),
        ("cpu", 1, 2, "cpu"),
        ("auto", 2, 2, r"more processes .* than torch sees GPUs \(2\)"),
        ("cuda:0", 0, 2, r"model.device=cuda:0 for 4 processes: leave it out"),
        ("cuda", 0, 0, "no GPU"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(device, local, gpus, expected, monkeypatch):
    monkeypatch.setattr(loading, "launched", lambda: Processes(local, local, 4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = ModelConfig(name="m", pretrained="m", device=device)
    if expected.startswith(("cuda", "cpu")):
        assert loading.device_of(config) == expected
    else:
        with pytest.raises(UserError, match=expected):
            loading.device_of(config)


def test_other_commands_and_launchers_are_refused_for_several_processes(monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: Processes(0, 0, 4))
    for call in (
        lambda: distributed.only_one("harness.tables"),
        lambda: lmms_model.from_flat({"pretrained": "m"}),
        lambda: cli._check_launcher(cli.parse(["hydra/launcher=slurm"]), multirun=True, launchers={"slurm": print}),
    ):
        with pytest.raises(UserError, match="is one process, 4 were launched: start it without torchrun or accelerate"):
            call()
