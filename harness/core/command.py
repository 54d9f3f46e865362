"""Run a command: compose its configuration with Hydra, check it, and end in one line if it cannot be done."""

import os
import re
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import MappingProxyType
from typing import Any, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.core.config import conf
from harness.core.config_groups import command_of, module_of
from harness.core.distributed import check_launch, launched, only_one
from harness.core.errors import UserError
from harness.core.help import page
from harness.core.last_line import MISTAKE, exited_by_others, report
from harness.core.overrides import VERSION_BASE, UnknownKeyError, compose, first_paragraph, parse, register_resolvers
from harness.core.timing import importing
from harness.core.values import check_text, checked

PLACES_OF_HYDRA = ("hydra.run", "hydra.sweep.", "hydra.output_subdir", "hydra.job.chdir", "hydra.runtime")


def command(
    config_name: str,
    task: Callable[[DictConfig], None],
    checks: Sequence[Callable[[DictConfig], Any]] = (),
    prepare: Callable[[list[str]], list[str]] | None = None,
    launchers: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    preview: Callable[[list[tuple[DictConfig, list[str]]]], None] | None = None,
    several: bool = False,
    ended: Callable[[list[list[str]], list[int], int], None] | None = None,
) -> None:
    """Run `task` with the composed configuration of every job; all jobs of a sweep are checked before the first starts.

    Each of `checks` sees every job before the next one does: the quick ones come first. `prepare` may rewrite the
    command-line overrides (to register choices that have no file in conf/). With `launchers`, `hydra/launcher=slurm`
    submits the jobs, and torchrun may start several processes for them; with `several`, only the latter. With
    dry_run=true, `preview` gets all jobs with their overrides, and nothing is run. After a sweep, also an
    interrupted one, `ended` gets the overrides of all jobs, the numbers of those that failed, and how many were done.
    """
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of being printed by Hydra
    exit_codes: dict[int, int] = {}  # of jobs that failed, by number
    try:
        _prepare_streams()
        check_launch()
        if not (launchers or several):
            only_one(module_of(config_name))
        args = _arguments()
        shown_only = bool(args.help or args.cfg or args.info)
        overrides = args.overrides
        overrides = _experiment(args.config_name or config_name, overrides, args.multirun, shown_only)
        overrides = prepare(overrides) if prepare else overrides
        sys.argv[1:] = [arg for arg in sys.argv[1:] if arg not in args.overrides] + overrides
        if not (args.hydra_help or args.shell_completion):
            _refuse_places_of_hydra(parse(overrides))
            _check_launcher(parse(overrides), args.multirun, launchers)
            with importing():  # torch, which some checks need
                jobs = _checked_jobs(
                    args.config_name or config_name, overrides, args.multirun, () if shown_only else checks
                )
            if args.help:
                with _writing_stdout():
                    return print(page(args.config_name or config_name, jobs[0][1]))
            if preview and not shown_only and any(cfg.dry_run for cfg, _ in jobs):
                with _writing_stdout():
                    return preview(jobs)
        started: list[DictConfig] = []
        job = _one_job(task, exit_codes, started)
        with _writing_stdout():
            sweep = bool(ended and args.multirun and not args.hydra_help)
            points = [point for _, point in jobs] if sweep else []
            try:
                hydra.main(version_base=VERSION_BASE, config_path=str(conf()), config_name=config_name)(job)()
            except KeyboardInterrupt:
                if ended and sweep:
                    ended(points, list(exit_codes), len(started) - 1)
                raise
            if ended and sweep:
                ended(points, list(exit_codes), len(points))
    except BaseException as error:  # the last line of defence, also of panics in Rust code, which are no Exception
        if isinstance(error, SystemExit) and not exited_by_others(error):
            raise
        sys.exit(_end(error))
    if exit_codes:
        sys.exit(min(exit_codes.values()))


def _one_job(
    task: Callable[[DictConfig], None], exit_codes: dict[int, int], started: list[DictConfig]
) -> Callable[[DictConfig], None]:
    """Wrap `task` so that an error takes one line and the other jobs of a sweep go on; jobs are noted in `started`."""

    def job(cfg: DictConfig) -> None:
        started.append(cfg)
        try:
            with _writing_stdout():  # here as well: Hydra would report this job as failed
                task(checked(cfg))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever ends one job, the others can be done
            own_exit = isinstance(error, SystemExit) and not exited_by_others(error)
            if own_exit or launched().count > 1:
                raise  # each process has to end: the others would wait for it
            exit_codes[len(started) - 1] = _end(error)

    return job


def _end(error: BaseException) -> int:
    """Report what ended a command or a job, and return the exit code; Hydra's and OmegaConf's errors are mistakes."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        mistake = UserError(first_paragraph(error))
        mistake.__cause__ = error
        return report(mistake)
    return report(error)


def _prepare_streams() -> None:
    """Refuse a closed stdout, and let it print in any locale: what its encoding lacks is printed as an escape."""
    if sys.stderr is None:  # closed: `print` would take stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (for the rest of the process)
    if sys.stdout is None:
        raise UserError("stdout is closed, and would be mixed up with the first file: redirect it to /dev/null")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _writing_stdout() -> Iterator[None]:
    """Raise UserError if stdout cannot be written; exit quietly if its reader, such as `head`, closes the pipe."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or (of_stdout := _stdout_error()) is None:
            raise  # of a file or another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        if isinstance(of_stdout, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        raise UserError(f"cannot write to stdout ({of_stdout.strerror}): print to another file or disk") from error


def _stdout_error() -> OSError | None:
    try:
        print(flush=True)
    except OSError as error:
        return error
    return None


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with code 2."""
    launched().tell(f"error: {message}")
    sys.exit(MISTAKE)


def _arguments() -> Namespace:
    """Parse the command line; UserError for what is no text, or asks Hydra for two things or for a pickle."""
    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    args = parser.parse_intermixed_args()
    for text in sys.argv[1:]:
        check_text("an argument", text)
    actions = {"--run": args.run, "-m": args.multirun, "--cfg": args.cfg, "--info": args.info}
    chosen = [name for name, value in {**actions, "--shell-completion": args.shell_completion}.items() if value]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other: pass one of them")
    if args.resolve and not args.cfg:
        raise UserError("--resolve is for --cfg: pass that too, or leave it out")
    if args.shell_completion and not re.match("(install|uninstall|query)=", "".join(args.overrides)):
        raise UserError("--shell-completion takes install=SHELL, uninstall=SHELL or query=SHELL: pass one of them")
    if args.experimental_rerun:
        raise UserError("--experimental-rerun would execute a pickle: repeat the command instead, it finds its run")
    return args


def _experiment(config_name: str, overrides: list[str], multirun: bool, shown_only: bool) -> list[str]:
    """Put what an experiment sweeps over in front of the overrides, so that the command line takes precedence."""
    chosen = parse([text for text in overrides if text.startswith("experiment=")])  # others may be folders to compare
    if not chosen or chosen[0].value() is None:
        return overrides
    if len(chosen) > 1 or chosen[0].is_sweep_override():
        raise UserError("one experiment at a time: start the others by commands of their own")
    own, other = module_of(config_name), command_of(str(chosen[0].value()))
    if own != other:
        raise UserError(f"{chosen[0].input_line} is for python -m {other}")
    cfg = compose(config_name, [str(chosen[0].input_line)], return_hydra_config=True)
    swept = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    if swept and not multirun and not shown_only:
        raise UserError(f"{chosen[0].input_line} is a sweep: add -m")
    return (swept if multirun else []) + overrides


def _checked_jobs(
    config_name: str, overrides: list[str], multirun: bool, checks: Sequence[Callable[[DictConfig], Any]]
) -> list[tuple[DictConfig, list[str]]]:
    parsed = parse(overrides)
    points = [[override.input_line or "" for override in parsed]]
    if multirun:
        points = BasicSweeper.split_arguments(parsed, None)[0]
    jobs, unknown = [], []
    for point in points:
        try:
            jobs.append((checked(compose(config_name, point)), point))
        except UnknownKeyError as error:
            unknown.append(error)
    if unknown:
        raise _without_key(unknown, [cfg for cfg, _ in jobs])
    for check in checks:
        for cfg, _ in jobs:
            check(cfg)
    return jobs


def _without_key(unknown: Sequence[UnknownKeyError], others: Sequence[DictConfig]) -> UserError:
    """Return the error of jobs that lack a key; where a sweep has choices that have it, say which and how to go on."""
    first = unknown[0]
    group, _, name = first.key.partition(".")
    lack = dict.fromkeys(error.owner for error in unknown if error.key == first.key)
    have = dict.fromkeys(f"{group}={cfg[group].name}" for cfg in others if first.owner)
    if not have:
        return first
    remedy = "leave it out, or sweep them by commands of their own"
    if group == "method":
        remedy = f"give each method parameters of its own, as in -m 'method=random,{{name: fastv, {name}: ...}}'"
    verb = "have" if len(lack) > 1 else "has"
    return UserError(f"{' and '.join(lack)} {verb} no {name}, unlike {', '.join(have)}: {remedy}")


def _refuse_places_of_hydra(overrides: list[Override]) -> None:
    """Raise UserError for folders and logs of Hydra's own, which writes nothing here, or for another directory."""
    for override in overrides:
        if override.key_or_group == "hydra.verbose":
            raise UserError("hydra.verbose shows nothing, since Hydra logs nothing here: pass verbose=true to a run")
        if override.key_or_group.startswith(PLACES_OF_HYDRA):
            why = "Hydra writes no file here: leave it out, and choose folders with runs= or out="
            raise UserError(f"{override.key_or_group} is no setting of this command, {why}")


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
