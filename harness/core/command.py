"""Run a command: compose its configuration with Hydra, check it, and report user errors in one line (exit code 2)."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NoReturn

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.core.config import conf
from harness.core.distributed import launched, only_one
from harness.core.errors import UserError, did_you_mean, one_line
from harness.core.overrides import VERSION_BASE, compose, first_paragraph, parse, register_resolvers
from harness.core.timing import importing


def command(
    config_name: str,
    task: Callable[[DictConfig], None],
    checks: Sequence[Callable[[DictConfig], Any]] = (),
    prepare: Callable[[list[str]], list[str]] | None = None,
    launchers: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    preview: Callable[[list[tuple[DictConfig, list[str]]]], None] | None = None,
    several: bool = False,
) -> None:
    """Run `task` with the composed configuration of every job; all jobs of a sweep are checked before the first starts.

    Each of `checks` sees every job before the next one does: the quick ones come first. `prepare` may rewrite the
    command-line overrides (to register choices that have no file in conf/). With `launchers`, `hydra/launcher=slurm`
    submits the jobs, and torchrun may start several processes for them; with `several`, only the latter. With
    dry_run=true, `preview` gets all jobs with their overrides, and nothing is run.
    """
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of being printed by Hydra
    try:
        if not (launchers or several):
            only_one(_module(config_name))
        parser = get_args_parser()
        parser.error = fail  # type: ignore[method-assign]
        args = parser.parse_intermixed_args()
        shown_only = bool(args.help or args.cfg or args.info)
        overrides = args.overrides
        overrides = _experiment(args.config_name or config_name, overrides, args.multirun, shown_only)
        overrides = prepare(overrides) if prepare else overrides
        sys.argv[1:] = [arg for arg in sys.argv[1:] if arg not in args.overrides] + overrides
        if not (args.hydra_help or args.shell_completion):
            _check_launcher(parse(overrides), args.multirun, launchers)
            with importing():  # torch, which some checks need
                jobs = _checked_jobs(
                    args.config_name or config_name, overrides, args.multirun, () if shown_only else checks
                )
            if preview and not shown_only and any(cfg.dry_run for cfg, _ in jobs):
                with _exit_quietly_on_broken_pipe():
                    return preview(jobs)
        failures: list[UserError] = []
        job = _one_job(task, failures)
        with _exit_quietly_on_broken_pipe():
            hydra.main(version_base=VERSION_BASE, config_path=str(conf()), config_name=config_name)(job)()
    except (UserError, OmegaConfBaseException, HydraException) as error:
        fail(first_paragraph(error))
    except KeyboardInterrupt:
        launched().tell("error: interrupted")
        sys.exit(128 + signal.SIGINT)
    if failures:
        sys.exit(2)


def _one_job(task: Callable[[DictConfig], None], failures: list[UserError]) -> Callable[[DictConfig], None]:
    """Wrap `task` so that an error takes one line and the other jobs of a sweep continue."""

    def job(cfg: DictConfig) -> None:
        try:
            with _exit_quietly_on_broken_pipe():  # here as well: Hydra would report this job as failed
                task(cfg)
        except UserError as error:
            if launched().count > 1:
                raise  # each process has to end: the others would wait for it
            launched().tell(f"error: {one_line(error)}")
            failures.append(error)

    return job


@contextmanager
def _exit_quietly_on_broken_pipe() -> Iterator[None]:
    """Exit without a traceback when the reader of the output, such as `head`, closes the pipe."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
            sys.exit(128 + signal.SIGPIPE)
        raise  # another pipe broke


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with code 2."""
    launched().tell(f"error: {message}")
    sys.exit(2)


def _experiment(config_name: str, overrides: list[str], multirun: bool, shown_only: bool) -> list[str]:
    """Put what an experiment sweeps over in front of the overrides, so that the command line takes precedence."""
    chosen = parse([text for text in overrides if text.startswith("experiment=")])  # others may be folders to compare
    if not chosen or chosen[0].value() is None:
        return overrides
    if len(chosen) > 1 or chosen[0].is_sweep_override():
        raise UserError("one experiment at a time: start the others by commands of their own")
    own, other = _module(config_name), _meant_for(str(chosen[0].value()))
    if own != other:
        raise UserError(f"{chosen[0].input_line} is for python -m {other}")
    cfg = compose(config_name, [str(chosen[0].input_line)], return_hydra_config=True)
    swept = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    if swept and not multirun and not shown_only:
        raise UserError(f"{chosen[0].input_line} is a sweep: add -m")
    return (swept if multirun else []) + overrides


def _module(config_name: str) -> str:
    return "harness" if config_name == "config" else f"harness.{config_name}"


def _meant_for(experiment: str) -> str:
    """Return the command of an experiment: the one that its file names, else the main job."""
    file = conf("experiment", f"{experiment}.yaml")
    if not file.is_file():
        experiments = [path.stem for path in file.parent.glob("*.yaml")]
        raise UserError(f"unknown experiment={experiment}: {did_you_mean(experiment, experiments)}")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return str(content.get("hydra", {}).get("job", {}).get("name", "harness"))


def _checked_jobs(
    config_name: str, overrides: list[str], multirun: bool, checks: Sequence[Callable[[DictConfig], Any]]
) -> list[tuple[DictConfig, list[str]]]:
    parsed = parse(overrides)
    points = [[override.input_line or "" for override in parsed]]
    if multirun:
        points = BasicSweeper.split_arguments(parsed, None)[0]
    jobs = [(compose(config_name, point), point) for point in points]
    for check in checks:
        for cfg, _ in jobs:
            check(cfg)
    return jobs


def _check_launcher(overrides: list[Override], multirun: bool, launchers: Mapping[str, Callable[[], None]]) -> None:
    """Check that the command supports the launcher it was given, and register the launcher for Slurm."""
    requested = {str(o.value()) for o in overrides if o.key_or_group == "hydra/launcher" and not o.is_sweep_override()}
    if other := requested - {"basic", "slurm"}:
        raise UserError(f"unknown hydra/launcher={other.pop()}: slurm submits to a cluster, basic runs here")
    if "slurm" not in requested:
        return
    only_one("a sweep with hydra/launcher=slurm")
    if not launchers:
        raise UserError("hydra/launcher=slurm is for python -m harness: start this command in a job of its own")
    if not multirun:
        raise UserError("hydra/launcher=slurm submits a sweep: add -m, also for a single run")
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"hydra/launcher=slurm needs {program}, which is not on this machine: use a login node")
    try:
        launchers["slurm"]()
    except ModuleNotFoundError as error:
        raise UserError("hydra/launcher=slurm needs a package: pip install hydra-submitit-launcher") from error
