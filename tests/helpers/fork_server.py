"""Commands in processes of their own, forked from one that has imported what they need: a start costs no import."""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path

import pytest

IMPORTED = ["fork_server_imports"]
FORK = multiprocessing.get_context("forkserver")


@dataclass
class Command:
    """`python -m` under way, or over."""

    process: multiprocessing.Process
    files: tuple[Path, Path]

    def end(self, timeout: float = 900) -> int:
        """The exit code; negative where a signal ended it."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.err}"
        return self.process.exitcode

    @property
    def out(self) -> str:
        return self.files[0].read_text()

    @property
    def err(self) -> str:
        return self.files[1].read_text()

    @property
    def report(self) -> dict:
        return json.loads(self.out.splitlines()[-1])

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@dataclass
class Forks:
    """Starts commands in `folder`; what they print lies in `said`."""

    folder: Path
    said: Path
    count: int = 0
    _agents: list = field(default_factory=list)

    def start(self, *call: str, env: dict | None = None, before=None) -> Command:
        """`python -m call` with more environment, after `before()` in the new process."""
        self.count += 1
        files = tuple(self.said / f"{self.count}.{name}" for name in ("out", "err"))
        process = FORK.Process(target=_command, args=(call, self.folder, env or {}, files, before))
        process.start()
        return Command(process, files)

    def run(self, *call: str, code: int = 0, **more) -> Command:
        command = self.start(*call, **more)
        assert command.end() == code, command.err
        return command

    def launch(self, count: int, *call: str, before: dict | None = None, agent: bool = True) -> list[Command]:
        """`count` processes with the environment that torchrun gives them; `before[rank]` runs first in one of them."""
        from torch.distributed import TCPStore

        agents = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # outlives any of the processes
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agents.port)}
        if agent:
            self._agents.append(agents)
            common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        del agents
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        first = before or {}
        return [self.start(*call, env={**common, **env}, before=first.get(r)) for r, env in enumerate(ranks)]


def completed(folder: Path, *call: str, env: dict | None = None) -> subprocess.CompletedProcess:
    """Run `python -m call` in `folder`; the test takes the fixture `fork_server`."""
    with tempfile.TemporaryDirectory() as said:
        command = Forks(folder, Path(said)).start(*call, env=env)
        return subprocess.CompletedProcess(call, command.end(), command.out, command.err)


def _command(call, folder, env, files, before):
    os.chdir(folder)
    os.environ.update(env)
    for descriptor, file in enumerate(files, 1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
    module, *sys.argv[1:] = call
    sys.argv[0] = module
    if before is not None:
        before()
    if not hasattr(sys.modules.get(module), "__path__"):
        sys.modules.pop(module, None)  # runpy warns of a module that has been imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def record(folder: Path) -> dict[str, bytes]:
    """What a run folder holds, without when and where it was computed."""
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    about = json.loads(found.pop("run.json"))
    found["identity"] = json.dumps(about["identity"]).encode()
    assert json.loads(found.pop("DONE"))["seconds"] >= 0
    return found


def kill(command: Command) -> None:
    os.kill(command.process.pid, signal.SIGKILL)
    assert command.end() == -signal.SIGKILL


def counting(answers: str | Path, killed_at: int = 0) -> None:
    """To run first in a process: note each question that it answers, and be killed in front of a batch."""
    from harness.evaluation.lmms_model import PrunedModel

    plain, calls = PrunedModel._answer, []

    def counted(self, batch, handle):
        calls.append(batch)
        if len(calls) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with Path(answers).open("a") as stream:
            stream.write("".join(f"{request.key}\n" for request in batch))
        return plain(self, batch, handle)

    PrunedModel._answer = counted


def start_server(home: Path) -> None:
    """Have the process that is forked import everything, once for all test modules of this pytest."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    wanted = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with pytest.MonkeyPatch.context() as environment:
        for key, value in wanted.items():
            environment.setenv(key, value)
        FORK.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
