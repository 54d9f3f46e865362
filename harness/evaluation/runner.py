"""Complete one run: the unpruned baseline, unless its folder is finished, then the pruned model."""

import platform
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from typing import Any

import torch

import harness
from harness.core.config import PACKAGE, RunConfig
from harness.core.distributed import launched
from harness.core.errors import UserError, as_user_error
from harness.core.files import from_json, json_line, slug
from harness.core.timing import Stages
from harness.evaluation.identity import packages, sources
from harness.evaluation.pruner import Pruner
from harness.evaluation.run_context import RunContext
from harness.evaluation.run_plan import PrunerRun, RunPlan
from harness.evaluation.task_suite import TaskSuite
from harness.models.calls import HookError
from harness.models.loading import Loaded
from harness.models.quantised import packages_of
from harness.pruning.decoding_proof import Proof
from harness.pruning.vision_cache import VisionCache
from harness.results.metrics import primary
from harness.results.response_log import ResponseLog
from harness.results.run_folder import RunFolder
from methods.base import Method


def run(plan: RunPlan, context: RunContext, baseline: bool = True) -> tuple[RunFolder, RunFolder]:
    """Complete the run and, unless that is another job's, its baseline; return both folders, the run first."""
    config, processes = plan.config, launched()
    runs = plan.runs if baseline else plan.runs[-1:]
    repeated = [config.force and part is runs[-1] for part in runs]
    done = processes.gather([_is_done(*each, config.strict) for each in zip(runs, repeated, strict=True)])[0]
    todo = [part for part, finished in zip(runs, done, strict=True) if not finished]
    if config.force and done[-1]:
        todo.append(runs[-1])
    if todo:
        stages = Stages()
        suite = context.suite(plan, stages)
        with stages("load"):
            loaded, vision_cache = context.load(plan, [part.pruner.method for part in todo])
        _try_on(todo[-1].pruner, loaded)
        context.progress.expect(len(todo) * sum(suite.questions.values()))
        for part in todo:
            with context.progress.run(part.pruner.label, sum(suite.questions.values())) as answered:
                _complete(plan, part, suite, loaded, vision_cache, stages, answered)
            stages = Stages()
    if processes.first:
        for part in runs:
            part.folder.show(primary(part.folder.metrics()["scores"], config.tasks.metrics))
    return runs[-1].folder, runs[0].folder


def _is_done(part: PrunerRun, repeated: bool, strict: bool) -> bool:
    """Return whether a run is finished; UserError if it is damaged, not this run, or has failures despite `strict`.

    One that is repeated may be damaged: it starts over.
    """
    folder = part.folder
    if folder.done and not repeated:
        folder.check()
        if strict and (failed := {task: n for task, n in folder.metrics().get("failed", {}).items() if n}):
            raise UserError(f"{folder.path} holds failed questions ({failed}): leave strict=true out")
    return folder.done


def _try_on(pruner: Pruner, loaded: Loaded) -> None:
    """Refuse a scorer of another width or an unsupported model before anything is written."""
    with as_user_error((ValueError, HookError)), pruner.attach(loaded.model):
        pass


def _complete(
    plan: RunPlan,
    part: PrunerRun,
    suite: TaskSuite,
    loaded: Loaded,
    vision_cache: VisionCache | None,
    stages: Stages,
    answered: Callable[[int], None],
) -> None:
    from harness.evaluation.lmms_model import PrunedModel

    config, pruner, folder = plan.config, part.pruner, part.folder
    processes, started = launched(), datetime.now(UTC)
    force = config.force and folder.done
    with ExitStack() as locks:
        if processes.first:
            locks.enter_context(folder.lock())
        if processes.gather(folder.done and not force)[0]:
            return  # another launch of the sweep was faster
        log = None
        if processes.first:
            about = _about(plan, pruner)
            log = folder.open(about, force)
            _record_other_code(folder, about)
        processes.gather()
        if log is None:
            locks.enter_context(folder.lock(processes.rank))
            log = ResponseLog(folder.path, processes.rank)
        resumed = folder.about() if processes.first and not force else {}
        before = Proof(**resumed.get("decoding", {}).get("proof", {}))

        def proven(proof: Proof) -> None:
            if processes.first:
                folder.amend({"decoding": _decoding(config, before | proof)})

        model = PrunedModel(
            loaded,
            pruner,
            part.answers,
            log,
            strict=config.strict,
            stages=stages,
            looked_at=suite.looked_at,
            verify=config.verify,
            proven=proven,
            shared=vision_cache,
            answered=answered,
        )
        with stages("scoring"):
            results = suite.run(model, config.question_sample, folder.path / "submissions")
        proofs = processes.gather(model.proof)
        if results is None:
            return
        decoding = _decoding(config, reduce(or_, proofs, before))
        folder.amend({"decoding": decoding})
        metrics, scores = results
        log.settle(model.asked)
        failed = {key: line for key, line in log.responses.items() if "failed" in line}
        questions = {(line["task"], line["doc_id"]) for line in failed.values()}  # a repeat is no question of its own
        questions |= _refused(metrics, config.strict)
        metrics["failed"] = {name: sum(task == name for task, _ in questions) for name in config.tasks.metrics}
        shown = [line for key, line in log.kept.items() if key not in failed]
        metrics["visual_tokens"] = _visual_tokens(list(config.tasks.metrics), shown)
        seconds = round((datetime.now(UTC) - started).total_seconds(), 1)
        finished = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds}
        stage_seconds = {stage: round(duration, 3) for stage, duration in stages.seconds.items()}
        folder.finish(metrics, scores, {**finished, "stages": stage_seconds, "decoding": decoding})


def _refused(metrics: dict[str, Any], strict: bool) -> set[tuple[str, int]]:
    """Return the task and number of each question that a judge refused; UserError if there is one despite `strict`."""
    reasons = {
        (task, int(number)): why
        for task, questions in metrics.get("unjudged", {}).items()
        for number, why in questions.items()
    }
    for (task, number), why in reasons.items() if strict else ():
        raise UserError(f"task {task}, question {number}: {why}: leave strict=true out")
    return set(reasons)


def _record_other_code(folder: RunFolder, about: dict[str, Any]) -> None:
    """Record in run.json that a run is resumed with other source text or patch versions than it began with."""
    recorded = folder.about()
    latest = recorded["resumed"][-1] if "resumed" in recorded else recorded
    if any(latest[key] != about[key] for key in ("packages", "sources")):
        entry = {key: about[key] for key in ("started", "git", "packages", "sources")}
        folder.amend({"resumed": [*recorded.get("resumed", []), entry]})


def _decoding(config: RunConfig, proof: Proof) -> dict[str, Any]:
    """Return what `run.json` and `DONE` say of the proof of decoding."""
    if not config.verify:
        return {"verified": False, "reason": "verify=false"}
    if not proof.questions:
        return {"verified": False, "reason": "no question with visual tokens was answered"}
    return {"verified": True, "proof": asdict(proof)}


def _visual_tokens(tasks: list[str], kept: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean number of visual tokens per question: before and after pruning, in the prefill, and of K.

    "per_layer" is the mean over decoder layers: a cut after layer j leaves all tokens to the layers before it.
    "per_tile", the mean number that is kept per tile, is there only where tiles were counted.
    """
    means = {}
    for task in tasks:
        lines = [line for line in kept if line["task"] == task]
        counts = {
            "all": [line["n"] for line in lines],
            "kept": [line["k"] for line in lines],
            "per_layer": [line["per_layer"] for line in lines],
            "budget": [line.get("budget", line["k"]) for line in lines],
        }
        means[task] = {name: round(sum(numbers) / max(len(numbers), 1), 2) for name, numbers in counts.items()}
        if tiles := [count for line in lines for count in line.get("per_tile", [])]:
            means[task]["per_tile"] = round(sum(tiles) / len(tiles), 2)
    return means


def _about(plan: RunPlan, pruner: Pruner) -> dict[str, Any]:
    """Return what `run.json` records in addition to the identity: the configuration, the machine, the code."""
    config, device = plan.config, plan.device
    resolved = asdict(config)
    resolved["method"] = {
        "name": pruner.name,
        **{k: v for k, v in vars(pruner.method).items() if not k.startswith("_")},
        # A companion file by name: its path is of this machine, and `made_from` says what it holds.
        **{k: file for k, file in pruner.method.companion_files.items() if config.params.get(k) is None},
    }
    resolved["model"]["newlines"] = pruner.newlines
    resolved.update(vars(pruner.budget), seed=pruner.seed, positions=pruner.positions)
    return {
        "method": slug(pruner.name) + (f" ({pruner.label_suffix})" if pruner.label_suffix else ""),
        "model": config.model.name,
        "budget": pruner.budget.label,
        "made_from": pruner.method.file_metadata,
        "parameters": from_json(json_line(_unusual(pruner.method), default=str)),
        "config": from_json(json_line(resolved, default=str)),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "python": platform.python_version(),
        "packages": packages(config.model.attn, packages_of(plan.model.quantisation)),
        "harness": harness.__version__,
        "sources": sources(pruner.method),
        "git": _git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _unusual(method: Method) -> dict[str, Any]:
    """Return the parameters that differ from the method's defaults."""
    values = {field: getattr(method, field.name) for field in fields(method) if field.init}
    return {
        field.name: value
        for field, value in values.items()
        if value != (field.default if field.default_factory is MISSING else field.default_factory())
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout this code runs from; None for an installed package.

    An environment inside a user's own repository is no checkout: harness/ must lie at the top of the repository.
    """
    call = ["git", "-C", str(PACKAGE), "rev-parse", "--show-prefix", "HEAD"]
    try:
        answer = subprocess.run(call, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    prefix, _, commit = answer.stdout.strip().partition("\n")
    return commit if answer.returncode == 0 and prefix == f"{PACKAGE.name}/" else None
