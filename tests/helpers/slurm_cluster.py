"""A Slurm cluster of one node in a folder: munged, slurmctld and slurmd, started and stopped by a test."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
PACKAGES = ("slurm-wlm", "munge")
CONFIG = """
ClusterName=test
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.socket,cred_expire=10
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=2
ReturnToService=2
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 RealMemory=64000 State=UNKNOWN
PartitionName=tiny Nodes={node} Default=YES MaxTime=60 State=UP
"""


def missing() -> str | None:
    """Try to install Slurm; return the reason why it cannot be started, or None."""
    if os.geteuid() != 0:
        return "it takes root to install and start Slurm"
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if not lacking:
        return None
    if shutil.which("apt-get") is None:
        return f"{', '.join(lacking)} are not installed, nor is there an apt-get to install {' and '.join(PACKAGES)}"
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for call in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", "-qq", *call], env=env, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"apt-get cannot install Slurm: {done.stderr.strip().splitlines()[-1]}"


def wait_for(what: str, condition: Callable[[], object], seconds: float = 900) -> None:
    """Wait until `condition()` is true; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} seconds"
        time.sleep(0.1)


@contextmanager
def slurm(root: Path) -> Iterator[dict[str, str]]:
    """Run the daemons within the block, with all their files below `root`; yield the environment for clients."""
    for name in ("state", "spool"):
        (root / name).mkdir(parents=True)
    key = root / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    config = root / "slurm.conf"
    with _free_ports(2) as ports:
        config.write_text(CONFIG.format(root=root, node=socket.gethostname().partition(".")[0], ports=ports))
    env = {**os.environ, "SLURM_CONF": str(config)}
    munge = [f"--{name}={root}/munge.{suffix}" for name, suffix in MUNGE.items()]
    with ExitStack() as daemons:

        def start(*call: str) -> None:
            log = daemons.enter_context((root / f"{call[0]}.out").open("w"))
            process = subprocess.Popen(call, env=env, stdout=log, stderr=subprocess.STDOUT)
            daemons.callback(process.wait)
            daemons.callback(process.terminate)

        start("munged", "--foreground", "--force", *munge)
        wait_for("munge", (root / "munge.socket").exists)
        start("slurmctld", "-D", "-f", str(config))
        start("slurmd", "-D", "-f", str(config))
        wait_for("node", lambda: "idle" in _says(env, "sinfo", "--noheader", "--format=%T"))
        try:
            yield env
        finally:
            _says(env, "scancel", "--user=root")
            wait_for("end of the jobs", lambda: not _says(env, "squeue", "--noheader").strip(), 60)


MUNGE = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


def _says(env: dict[str, str], *call: str) -> str:
    return subprocess.run(call, env=env, capture_output=True, text=True, check=False).stdout


@contextmanager
def _free_ports(count: int) -> Iterator[list[int]]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        yield [free.getsockname()[1] for free in sockets]
