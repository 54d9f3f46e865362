"""Submit a sweep to a cluster as one job array, through submitit, without waiting: hydra/launcher=slurm.

Each job computes one run and nothing else. Baselines are runs of their own, first in the array, so that no job holds a
GPU while another computes the baseline it would wait for; tables bring them together afterwards. What is finished,
queued or running is not submitted again.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf, open_dict

from harness.core.config import RunConfig, validate
from harness.core.console import print_json, say
from harness.core.errors import UserError
from harness.core.last_line import report
from harness.core.values import checked
from harness.evaluation.preflight import LocatedRun
from harness.evaluation.run_context import RunContext
from harness.evaluation.sweep_plan import shared, wanted_runs
from harness.results.metrics import primary
from harness.results.run_folder import METRICS, RunFolder
from harness.results.submissions import LIVE, PlannedRun, Run, key_of, list_runs, write_plan


class Job:
    """One run on a compute node; submitit queues it again when it is preempted or out of time, and it resumes."""

    def __call__(self, config: RunConfig, key: str) -> None:
        """Complete the run and print its scores as one JSON line; Slurm's tasks stand for torchrun's processes.

        A mistake takes one line of the log. Of an unforeseen error the log has the traceback: the temporary folder of
        a node, where a command would leave it, is gone with the job.
        """
        try:
            self._complete(config, key)
        except UserError as error:
            sys.exit(report(error))

    def _complete(self, config: RunConfig, key: str) -> None:
        from submitit.helpers import JobEnvironment, TorchDistributedEnvironment

        from harness.core.distributed import launched
        from harness.evaluation.runner import run

        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # all are on one node, which may be unable to resolve its own name
        context = RunContext()
        plan = context.plan(config)
        if key_of(plan.runs[-1].folder.identity) != key:
            raise UserError("weights, data, code or libraries have changed since this was submitted: submit it again")
        folder, _ = run(plan, context, baseline=False)
        if launched().first:
            print_json({"run": str(folder.path), "scores": folder.metrics()["scores"]}, folder.path / METRICS)

    def checkpoint(self, config: RunConfig, key: str) -> Any:
        """Submit the same again: the run folder knows what has been answered."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, config, key)


class Launcher(SlurmLauncher):
    """Hydra's submitit launcher, which submits what is missing and returns."""

    __module__ = "hydra_plugins.harness"  # Hydra takes launchers from this package alone
    context: RunContext  # set by `register`: Hydra makes the launcher

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit one array and end with one JSON line; no job's end is waited for."""
        configs = [self._config(overrides) for overrides in job_overrides]
        check(configs, self.params)
        common, own = shared(job_overrides)
        wanted = wanted_runs(list(zip(map(self.context.located, configs), own, strict=True)))
        runs = Path(configs[0].runs)
        existing = {run.key: run for run in list_runs(runs)}
        for _, plan in wanted:
            if _is(existing, plan, "damaged"):
                raise UserError(str(existing[plan.key].why))
        done = [(run, existing[plan.key]) for run, plan in wanted if _is(existing, plan, "done")]
        for run, finished in done:
            folder = RunFolder(runs / finished.run, {})
            folder.show(primary(folder.metrics()["scores"], run.config.tasks.metrics))
        left = [(run, plan) for run, plan in wanted if not _is(existing, plan, "done", *LIVE)]
        counts = {"finished": len(done), "queued": len(wanted) - len(done) - len(left), "submitted": len(left)}
        number = self._submit(left, common, runs) if left else None
        print(f"{len(wanted)} runs: {', '.join(f'{count} {state}' for state, count in counts.items())}")
        say(f"python -m harness.status runs={runs}")
        say(f"python -m harness.tables runs={runs}")
        print_json({"job": number, "runs": str(runs), **counts})
        return []

    def _config(self, overrides: Sequence[str]) -> RunConfig:
        """Compose and check the configuration of one job."""
        assert self.config is not None
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed):
            del composed["hydra"]
        return validate(checked(composed))

    def _submit(self, jobs: Sequence[tuple[LocatedRun, PlannedRun]], common: list[str], runs: Path) -> str:
        """Write the plan, submit the array, return its number; UserError with what sbatch says."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        params = {key: value for key, value in self.params.items() if key not in ("submitit_folder", "max_num_timeout")}
        general = set(OmegaConf.structured(BaseQueueConf))
        folder = write_plan(runs, [plan for _, plan in jobs], common)
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self.params["max_num_timeout"])
        try:
            executor.update_parameters(**{k if k in general else f"slurm_{k}": v for k, v in params.items()})
            submitted = executor.map_array(Job(), *zip(*((run.config, plan.key) for run, plan in jobs), strict=True))
        except (FailedJobError, FailedSubmissionError) as error:
            shutil.rmtree(folder)
            *_, message = str(error).splitlines()
            raise UserError(f"sbatch refused the array: {message.removeprefix('sbatch: error: ')}") from error
        return str(submitted[0].job_id.partition("_")[0])


def register(context: RunContext) -> None:
    """Let Hydra find the launcher under the name that conf/ has for it; `context` has located its jobs."""
    Launcher.context = context
    sys.modules[Launcher.__module__] = sys.modules[__name__]
    Plugins.instance().register(Launcher)


def check(sweep: Sequence[RunConfig], params: Mapping[str, Any]) -> None:
    """Refuse what every job of the array would refuse, and what cannot be started again."""
    processes, gpus = params["tasks_per_node"], params["gpus_per_node"]
    if params["nodes"] != 1:
        raise UserError("hydra.launcher.nodes must be 1: the processes of a run (tasks_per_node) share a node")
    if gpus and processes > gpus:
        raise UserError(f"hydra.launcher.tasks_per_node={processes} on gpus_per_node={gpus}: each process takes a GPU")
    if processes > 1 and any(config.model.device_map for config in sweep):
        raise UserError("model.device_map spreads one process over the GPUs: set hydra.launcher.tasks_per_node=1")
    if any(config.force for config in sweep):
        raise UserError("force=true repeats finished runs, which an array leaves out: move their folders away instead")
    if len({config.runs for config in sweep}) > 1:
        raise UserError("runs= cannot be swept on a cluster: a sweep has one folder")


def _is(existing: Mapping[str, Run], plan: PlannedRun, *states: str) -> bool:
    return plan.key in existing and existing[plan.key].state in states
