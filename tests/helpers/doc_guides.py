"""The pages of docs/, and a reader that follows a page: it writes its files and runs its commands in order."""

import glob
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fork_server import Forks
from last_line import report_of

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAUNCHED = 2  # processes, whatever number a page launches


@dataclass(frozen=True)
class Page:
    """A page of docs/: fenced blocks without a language are commands, others that begin with # NAME are files."""

    name: str

    @cached_property
    def text(self) -> str:
        return (ROOT / "docs" / self.name).read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[tuple[str, str]]:
        return FENCE.findall(self.text)

    @cached_property
    def commands(self) -> list[str]:
        joined = "".join(text for kind, text in self.blocks if not kind).replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip()]

    @cached_property
    def files(self) -> dict[str, str]:
        heads = {text.split("\n", 1)[0]: text for kind, text in self.blocks if kind}
        return {head.removeprefix("# "): text for head, text in heads.items() if re.fullmatch(r"# [\w.]+", head)}

    @cached_property
    def prose(self) -> str:
        return FENCE.sub("", self.text)

    @cached_property
    def spans(self) -> list[str]:
        """Return the texts in backticks."""
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]

    @cached_property
    def links(self) -> list[str]:
        return [link for link in re.findall(r"\]\(([^)]+)\)", self.prose) if "://" not in link]


PAGES = {path.name: Page(path.name) for path in sorted((ROOT / "docs").glob("*.md"))}


@dataclass(frozen=True)
class Said:
    """The output of a command."""

    out: str
    err: str

    @property
    def report(self) -> dict:
        return report_of(self.out)

    @property
    def runs(self) -> list[dict]:
        """The reports of the runs of a sweep, of which the last line is none."""
        return [report_of(line) for line in self.out.splitlines() if line.startswith('{"run"')]


@dataclass
class Reader:
    """Run the commands of a page in `folder`, as in a clone of the repository.

    `given` maps paths that a page assumes (/path/to/weights) to real ones. `more` maps the beginning of commands to
    words to append, so that a sweep that would take hours is only listed.
    """

    page: Page
    folder: Path
    forks: Forks
    python: Path  # takes the place of the program
    given: dict[str, str]
    more: dict[str, list[str]] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)

    def work_through(self) -> "Reader":
        for name, text in self.page.files.items():
            (self.folder / name).write_text(text)
        self.said = [self._type(command) for command in self.page.commands]
        return self

    def _type(self, command: str) -> Said:
        text = command
        for there, here in self.given.items():
            text = text.replace(there, here)
        words = [path for word in shlex.split(text, comments=True) for path in self._globbed(word)]
        words += [word for start, added in self.more.items() if command.startswith(start) for word in added]
        env = {}
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            key, _, env[key] = words.pop(0).partition("=")
        match words:
            case ["python", "-m", "pytest", path, *rest] if path.startswith("tests/"):
                processes = [self.forks.start("pytest", str(ROOT / path), *rest)]
            case ["python", "-m", *call]:
                processes = [self.forks.start(*call, env=env)]
            case ["torchrun", "--nproc-per-node", _, "-m", *call] | ["accelerate", "launch", "-m", *call]:
                processes = self.forks.launch(LAUNCHED, *call)  # with the environment of either launcher
            case ["python", file] if file in self.page.files:
                processes = [self.forks.start(file)]
            case ["make", target]:
                return self._called("make", "--dry-run", "-C", str(ROOT), target)  # a real make installs everything
            case ["python", script, *rest] if script.startswith("scripts/"):
                return self._called(str(self.python), str(ROOT / script), *rest)
            case [script, *rest] if script.startswith("scripts/"):
                return self._called(str(ROOT / script), *rest, **env)
            case _:
                raise AssertionError(f"docs/{self.page.name} has a command that no test can run: {command}")
        codes = [process.end() for process in processes]
        assert not any(codes), f"{command}\n{processes[0].err}"
        return Said(processes[0].out, processes[0].err)

    def _globbed(self, word: str) -> list[str]:
        paths = sorted(glob.glob(word, root_dir=self.folder)) if "*" in word else [word]
        assert paths, f"docs/{self.page.name}: nothing is called {word}"
        return paths

    def _called(self, *call: str, **env: str) -> Said:
        path = f"{self.python.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        more = {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env = {**os.environ, **more, **env}
        done = subprocess.run(call, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(call)}\n{done.stderr}"
        return Said(done.stdout, done.stderr)
