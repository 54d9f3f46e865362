"""Run commands in processes forked from one that has imported everything, so that a start costs no import."""

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
from last_line import report_of

IMPORTED = ["fork_server_imports"]
FORK = multiprocessing.get_context("forkserver")


@dataclass
class Command:
    """A running or finished `python -m` process."""

    process: multiprocessing.Process
    files: tuple[Path, Path]
    folder: Path

    def end(self, timeout: float = 900) -> int:
        """Wait for the exit code; it is negative if a signal ended the process."""
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
        return report_of(self.out, self.folder)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@dataclass
class Forks:
    """Start commands in `folder`; their output goes to files in `said`."""

    folder: Path
    said: Path
    count: int = 0
    _agents: list = field(default_factory=list)

    def start(self, *call: str, env: dict | None = None, before=None) -> Command:
        """Start `python -m call`, a script or `-c`, with more environment variables; `before()` runs first in it."""
        self.count += 1
        files = tuple(self.said / f"{self.count}.{name}" for name in ("out", "err"))
        process = FORK.Process(target=_command, args=(call, self.folder, env or {}, files, before))
        process.start()
        return Command(process, files, self.folder)

    def run(self, *call: str, code: int = 0, **more) -> Command:
        command = self.start(*call, **more)
        assert command.end() == code, command.err
        return command

    def launch(self, count: int, *call: str, before: dict | None = None, agent: bool = True) -> list[Command]:
        """Start `count` processes with the environment of torchrun; `before[rank]` runs first in process `rank`."""
        from torch.distributed import TCPStore

        agents = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # has to outlive the processes
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
    opened = {n: os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for n, file in enumerate(files, 1)}
    is_module = call[0] != "-c" and not call[0].endswith(".py")
    as_python(["-m", *call] if is_module else call, folder, env, opened, before)


def as_python(call, folder, env, descriptors, before=None) -> None:
    """Do in this process what `python CALL` does in a new one, with other file descriptors."""
    os.chdir(folder)
    os.environ.update(env)
    for descriptor, opened in descriptors.items():
        os.dup2(opened, descriptor)
    # New ones, since those of the server remember what kind of file they wrote to.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    if before is not None:
        before()
    sys.argv = list(call)
    first = len(sys.path) if "harness" in sys.modules else 0  # harness/__init__.py puts the first place last
    sys.path.insert(first, str(Path(call[0]).parent if call[0].endswith(".py") else folder))
    if call[0] == "-c":
        exec(sys.argv.pop(1), {"__name__": "__main__"})
        return
    if call[0] != "-m":
        runpy.run_path(call[0], run_name="__main__")
        return
    module = sys.argv.pop(1)
    if not hasattr(sys.modules.get(module), "__path__"):
        sys.modules.pop(module, None)  # runpy warns about a module that is already imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def record(folder: Path) -> dict[str, bytes]:
    """Return the contents of a run folder, except when and where it was computed."""
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    about = json.loads(contents.pop("run.json"))
    contents["identity"] = json.dumps(about["identity"]).encode()
    assert json.loads(contents.pop("DONE"))["seconds"] >= 0
    return contents


def counting(answers: str | Path, killed_at: int = 0) -> None:
    """Log the key of each answered question, and kill the process before batch `killed_at`; for use as `before`."""
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
    """Start the process from which commands are forked, once per pytest process."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    variables = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with pytest.MonkeyPatch.context() as environment:
        for key, value in variables.items():
            environment.setenv(key, value)
        FORK.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
