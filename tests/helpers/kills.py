"""Runs in processes of their own that are killed at a chosen moment, and what they leave."""

import itertools
import os
import signal
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

from fork_server import Command, Forks, record


@dataclass
class Place:
    root: Path
    forks: Forks
    call: list[str]

    def run(self, runs: str | Path, code: int = 0, before=None, **overrides) -> Command:
        more = [f"{key}={value}" for key, value in overrides.items()]
        return self.forks.run(*self.call, f"runs={runs}", *more, code=code, before=before)

    def refused(self, runs: str | Path, before=None, **overrides) -> str:
        """The one line with which a run ends that cannot go on."""
        command = self.run(runs, 2, before, **overrides)
        assert "Traceback" not in command.err
        assert len(command.errors) == 1, command.err
        assert command.out == ""
        return command.errors[0]

    def folders(self, runs: str | Path) -> list[Path]:
        return sorted(path.parent for path in (self.root / runs).rglob("run.json"))

    def records(self, runs: str | Path) -> dict[str, dict[str, bytes]]:
        return {folder.name: record(folder) for folder in self.folders(runs)}


def watch(moments: Path, killed_at: int = 0) -> None:
    """To run first in a process: note its moments; at one of them comes kill -9, half-way through what is written.

    The kinds of moments are generating, scoring, writing, and renaming what was written to its name.
    """
    from lmms_eval import evaluator
    from transformers import Qwen2_5_VLForConditionalGeneration as Model

    from harness.results import response_log, run_folder, seal

    number = itertools.count(1)

    def moment(kind: str) -> bool:
        with moments.open("a") as stream:
            stream.write(f"{kind}\n")
        return next(number) == killed_at

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watched(owner, name: str, kind: str, half=None) -> None:
        plain = getattr(owner, name)

        @wraps(plain)
        def call(*args, **kwargs):
            if moment(kind):
                if half:
                    half(*args)
                die()
            return plain(*args, **kwargs)

        setattr(owner, name, call)

    def half_a_line(file: Path, text: str, sync: bool) -> None:
        with file.open("a") as stream:
            stream.write(text[: len(text) // 2])

    def half_a_file(path: Path, content: str | bytes) -> None:
        content = content if isinstance(content, bytes) else content.encode()
        path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(content[: len(content) // 2])

    watched(Model, "forward", "generating")
    watched(evaluator, "_process_document_results", "scoring")
    watched(response_log, "append", "writing", half_a_line)
    watched(Path, "replace", "renaming")
    for module in (response_log, run_folder, seal):
        watched(module, "write_atomic", "writing", half_a_file)
