"""A sweep on a real Slurm: jobs that are preempted, cancelled or fail, and at last the bytes of a sweep without it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import missing, slurm, wait_for
from tiny_models import tiny_folder
from tiny_tasks import write_tiny_tasks

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUESTIONS, PART = 20, 6  # of the first task; and after how many answers the first run is preempted, and cancelled
METHODS = ("probe.py:Held", "probe.py:Broken", "random")
PROBE = f"""
PART = {PART}
import os
import time
from dataclasses import dataclass
from pathlib import Path

from methods.random import Random

GATE = Path(os.environ["GATE"])
asked = []


@dataclass(kw_only=True)
class Held(Random):
    def _select(self, tokens, k, generator):
        asked.append(1)
        (GATE / "pid").write_text(str(os.getpid()))
        while len(asked) > PART + 2 and (GATE / "shut").exists():  # the proof asks the first batch twice
            time.sleep(0.05)
        return super()._select(tokens, k, generator)


@dataclass(kw_only=True)
class Broken(Random):
    def _select(self, tokens, k, generator):
        if (GATE / "broken").exists():
            raise RuntimeError("broken on purpose")
        return super()._select(tokens, k, generator)
"""


class Cluster:
    """What a user of the test cluster sees: a folder with a model, tasks and a method, and the commands."""

    def __init__(self, root: Path, env: dict[str, str], python: Path):
        self.root, self.python = root, python
        path = f"{python.parent}:{Path(sys.executable).parent}:{env['PATH']}"
        quiet = {"HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GATE": str(root)}
        job = {"GPUS": "0", "CPUS": "1", "MEMORY_GB": "4", "MINUTES": "30", "RUNS": "runs"}
        job |= {"PARTITION": "tiny", "ACCOUNT": "lab"}
        self.env = {**env, **quiet, **job, "PATH": path}
        model = tiny_folder(root)
        tasks = write_tiny_tasks(root / "tasks", QUESTIONS)
        (root / "probe.py").write_text(PROBE)
        self.sweep = [f"model.pretrained={model}", "tasks=[tiny_stills,tiny_clips]", f"tasks.include={tasks}"]
        self.sweep += ["model.batch_size=2", "keep=0.5", f"method={','.join(METHODS)}"]

    def run(self, *call: str | Path, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            call, cwd=self.root, env=self.env, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    def harness(self, *args: str, code: int = 0) -> tuple[str, str]:
        return self.run(self.python, "-m", "harness", *args, code=code)

    def submit(self, *more: str, processes: int = 1) -> dict:
        """What scripts/submit.sh reports of the array in a file that gets all it says."""
        self.env["PROCESSES"] = str(processes)
        self.run("bash", "-c", 'exec "$@" &> said', "submit", SCRIPTS / "submit.sh", *self.sweep, *more)
        (report,) = [line for line in (self.root / "said").read_text().splitlines() if line.startswith("{")]
        return json.loads(report)

    def status(self) -> dict:
        out, _ = self.run(self.python, "-m", "harness.status", "runs=runs")
        report = json.loads(out.splitlines()[-1])
        report["by"] = {Path(job["run"]).name.rpartition("-0.5")[0] or "none": job for job in report["jobs"]}
        return report

    def folder(self, name: str, runs: str = "runs") -> Path | None:
        return next(iter(self.root.glob(f"{runs}/*/*/{name}-*")), None)

    def answers(self, name: str) -> int:
        folder = self.folder(name)
        file = folder / "responses.jsonl" if folder else self.root / "none"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def same(self, runs: str, others: str) -> int:
        """How many runs there are; each has the bytes that it has elsewhere."""
        folders = [path.parent for path in self.root.glob(f"{runs}/*/*/*/DONE")]
        for folder in folders:
            there = self.root / others / folder.relative_to(self.root / runs)
            for name in ("responses.jsonl", "kept.jsonl", "scores.json", "metrics.json"):
                assert (there / name).read_bytes() == (folder / name).read_bytes()
        return len(folders)

    def done(self, *names: str) -> bool:
        return all((folder := self.folder(name)) and (folder / "DONE").exists() for name in names)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, python):
    if why := missing():
        pytest.skip(f"SLURM IS NOT TESTED: {why}")
    root = tmp_path_factory.mktemp("user")
    with slurm(tmp_path_factory.mktemp("slurm")) as env:
        yield Cluster(root, env, python)


def test_what_sbatch_refuses_is_one_line_and_leaves_no_plan(cluster):
    _, err = cluster.harness("-m", "hydra/launcher=slurm", *cluster.sweep, "runs=refused", code=2)
    assert err.splitlines()[-1] == "error: sbatch refused the array: Invalid generic resource (gres) specification"
    assert list((cluster.root / "refused" / ".sweeps").iterdir()) == []
    shutil.rmtree(cluster.root / "refused")


def test_a_sweep_that_is_preempted_cancelled_and_fails_ends_with_the_bytes_of_a_local_one(cluster):
    for name in ("shut", "broken"):
        (cluster.root / name).touch()
    first = cluster.submit()
    assert (first["finished"], first["queued"], first["submitted"]) == (0, 0, 4)

    wait_for("some answers", lambda: cluster.answers("probe.py-Held") == PART)
    status = cluster.status()
    held = status["by"]["probe.py-Held"]
    assert (held["state"], held["answers"], held["job"]) == ("running", PART, f"{first['job']}_1")
    assert status["by"]["random"]["state"] == "queued"
    assert status["remain"] == 0

    os.kill(int((cluster.root / "pid").read_text()), signal.SIGUSR2)  # as Slurm does before the time limit
    wait_for("more answers of the requeued job", lambda: cluster.answers("probe.py-Held") == 2 * PART)
    wait_for("the other runs", lambda: cluster.done("none", "random"))

    cluster.run("scancel", held["job"])
    wait_for("end of the job", lambda: held["job"] not in cluster.run("squeue", "--array", "--format=%i")[0])
    status = cluster.status()
    assert status["counts"] == {"done": 2, "stopped": 1, "failed": 1}
    assert status["remain"] == 2
    held, broken = status["by"]["probe.py-Held"], status["by"]["probe.py-Broken"]
    assert (held["state"], held["answers"]) == ("stopped", 2 * PART)
    assert "CANCELLED" in held["why"]
    assert (broken["state"], broken["answers"]) == ("failed", 0)
    assert broken["why"] == "RuntimeError: broken on purpose"
    assert broken["overrides"] == ["method=probe.py:Broken"]
    assert broken["why"] in (cluster.root / broken["log"]).read_text()

    for name in ("shut", "broken"):
        (cluster.root / name).unlink()
    second = cluster.submit(processes=2)  # which makes no difference
    assert (second["finished"], second["queued"], second["submitted"]) == (2, 0, 2)
    launcher = ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=tiny"]
    third, _ = cluster.harness(*launcher, *cluster.sweep, "runs=runs")
    *_, status, table, last = third.splitlines()
    assert (status, table) == ("python -m harness.status runs=runs", "python -m harness.tables runs=runs")
    assert json.loads(last)["submitted"] == 0

    cluster.harness("-m", *cluster.sweep, "runs=local")
    wait_for("the rest", lambda: cluster.done("probe.py-Held", "probe.py-Broken"))
    assert cluster.same("local", "runs") == 4

    status = cluster.status()
    assert (status["counts"], status["remain"]) == ({"done": 4}, 0)
    table = cluster.root / "runs" / "table.csv"
    wait_for("the table of the gathering job", lambda: table.exists() and table.read_text().count("\n") == 5)

    shutil.copytree(cluster.root / "runs", cluster.root / "altered")
    (cluster.folder("random", "altered") / "metrics.json").write_text("{}")
    _, err = cluster.harness(*launcher, *cluster.sweep, "runs=altered", code=2)
    assert "is damaged (metrics.json was changed after the end): restore a copy, or remove" in err.splitlines()[-1]


def test_one_run_over_the_processes_of_a_node(cluster):
    """After the sweep, whose bytes it ends with."""
    cluster.env["PROCESSES"] = "2"
    size = ["--gpus-per-node=0", "--cpus-per-task=2", "--mem=4G", "--time=30", "--partition=tiny", "--account=lab"]
    cluster.run("sbatch", "--wait", *size, SCRIPTS / "node.sbatch", *cluster.sweep[:-1], "method=random", "runs=node")
    assert cluster.same("node", "runs") == 2


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean():
    scripts = [script for script in SCRIPTS.iterdir() if script.suffix in (".sh", ".sbatch")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert all(os.access(script, os.X_OK) for script in scripts)


def test_a_mistake_takes_one_line_of_a_jobs_log(monkeypatch, capsys):
    from harness.core.errors import UserError
    from harness.evaluation.slurm import Job

    def mistaken(job, config, key):
        raise UserError("no such\ndata set")

    monkeypatch.setattr(Job, "_complete", mistaken)
    with pytest.raises(SystemExit) as stopped:
        Job()(None, "key")
    assert (stopped.value.code, *capsys.readouterr()) == (2, "", "error: no such data set\n")
