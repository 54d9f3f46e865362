"""One run: the unpruned baseline made or reused, then the pruned model, both in their folders."""

import json
import os
import platform
import subprocess
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch

import harness
from harness.core.config import PACKAGE, RunConfig, shipped
from harness.core.distributed import launched
from harness.core.errors import UserError, one_line
from harness.core.files import digest, slug
from harness.core.task_index import task_files
from harness.core.timing import Stages
from harness.evaluation import datasets, reuse, task_overrides
from harness.evaluation.identity import Identity, packages, sources
from harness.evaluation.pruner import Pruner, pruner_of
from harness.evaluation.task_suite import TaskSuite
from harness.models import checkpoint
from harness.models.calls import HookError
from harness.models.loading import Loaded, device_of, family_of
from harness.pruning.decoding_proof import Proof
from harness.pruning.vision_cache import VisionCache
from harness.results.metrics import primary
from harness.results.response_log import ResponseLog
from harness.results.run_folder import RunFolder


def planned(config: RunConfig) -> tuple[Identity, list[tuple[Pruner, RunFolder]]]:
    """The baseline and the configured run, in this order and with their folders; nothing is loaded yet."""
    processes = launched()
    processes.gather()  # from here on one of them says for all what is wrong
    device_of(config.model)  # refuses a GPU that is not there, before anything is fetched
    weights = processes.in_turn(lambda: checkpoint.download(config.model))
    identity = Identity(config, weights)
    alike = digest([identity.model, packages(config.model.attn)])
    if len(set(processes.gather(alike))) > 1:
        raise UserError("the processes of this run differ in their kind of GPU or in the versions of their packages")
    pruner = pruner_of(config, weights)
    baseline = pruner_of(replace(config, method={"name": "none"}), weights)
    pruners = [baseline, pruner] if config.pruned else [baseline]
    return identity, [(p, _folder(config, identity, p)) for p in pruners]


def run(config: RunConfig, baseline: bool = True) -> tuple[RunFolder, RunFolder]:
    """Complete the run and, unless that is another job's, its baseline; returns both folders, the run first."""
    processes = launched()
    identity, wanted = planned(config)
    if not baseline:
        wanted = wanted[-1:]
    done = processes.gather([_is_done(folder, config.strict) for _, folder in wanted])[0]
    todo = [each for each, finished in zip(wanted, done, strict=True) if not finished]
    if config.force and done[-1]:
        todo.append(wanted[-1])
    if todo:
        stages = Stages()
        suite = reuse.suite(config, identity, wanted[-1][1].identity["tasks"], stages)
        with stages("load"):
            loaded, shared = reuse.loaded(config, identity, [pruner.method for pruner, _ in todo])
        _try_on(todo[-1][0], loaded)
        for p, folder in todo:
            _complete(config, p, folder, suite, loaded, shared, identity, stages)
            stages = Stages()
    if processes.first:
        for _, folder in wanted:
            folder.show(primary(folder.metrics()["scores"], config.tasks.metrics))
    return wanted[-1][1], wanted[0][1]


def _is_done(folder: RunFolder, strict: bool) -> bool:
    """True for a finished run; UserError if it is damaged, another one, or not free of what `strict` refuses."""
    if folder.done:
        folder.check()
        if strict and (failed := {task: n for task, n in folder.metrics().get("failed", {}).items() if n}):
            raise UserError(f"{folder.path} holds failed questions ({failed}): leave strict=true out")
    return folder.done


def _try_on(pruner: Pruner, loaded: Loaded) -> None:
    """A scorer of another width or an unsupported model shows here, before anything is written."""
    try:
        with pruner.attach(loaded.model):
            pass
    except (ValueError, HookError) as error:
        raise UserError(one_line(error)) from error


def _complete(
    config: RunConfig,
    pruner: Pruner,
    folder: RunFolder,
    suite: TaskSuite,
    loaded: Loaded,
    shared: VisionCache | None,
    identity: Identity,
    stages: Stages,
) -> None:
    from harness.evaluation.lmms_model import PrunedModel

    processes, started = launched(), datetime.now(UTC)
    force = config.force and folder.done
    with ExitStack() as held:
        if processes.first:
            held.enter_context(folder.lock())
        if processes.gather(folder.done and not force)[0]:
            return  # another launch of the sweep was faster
        journal = None
        if processes.first:
            about = _about(config, pruner)
            journal = folder.open(about, force)
            _record_other_code(folder, about)
        processes.gather()
        if journal is None:
            held.enter_context(folder.lock(processes.rank))
            journal = ResponseLog(folder.path, processes.rank)
        resumed = folder.about() if processes.first and not force else {}
        before = Proof(**resumed.get("decoding", {}).get("proof", {}))

        def proven(proof: Proof) -> None:
            if processes.first:
                folder.amend({"decoding": _decoding(config, before | proof)})

        model = PrunedModel(
            loaded,
            pruner,
            identity.answers(pruner),
            journal,
            strict=config.strict,
            stages=stages,
            looked_at=suite.looked_at,
            verify=config.verify,
            proven=proven,
            shared=shared,
        )
        with stages("scoring"):
            found = suite.run(model, config.limit, folder.path / "submissions")
        proofs = processes.gather(model.proof)
        if found is None:
            return
        decoding = _decoding(config, reduce(or_, proofs, before))
        folder.amend({"decoding": decoding})
        metrics, scores = found
        journal.settle(model.asked)
        failed = {key: line["task"] for key, line in journal.responses.items() if "failed" in line}
        metrics["failed"] = {task: list(failed.values()).count(task) for task in config.tasks.metrics}
        shown = [line for key, line in journal.kept.items() if key not in failed]
        metrics["visual_tokens"] = _visual_tokens(list(config.tasks.metrics), shown)
        seconds = round((datetime.now(UTC) - started).total_seconds(), 1)
        finished = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds}
        spent = {stage: round(each, 3) for stage, each in stages.seconds.items()}
        folder.finish(metrics, scores, {**finished, "stages": spent, "decoding": decoding})


def _record_other_code(folder: RunFolder, about: dict[str, Any]) -> None:
    """Add to run.json with which source text and patch versions a run goes on, if it began with others."""
    known = folder.about()
    latest = known["resumed"][-1] if "resumed" in known else known
    if any(latest[key] != about[key] for key in ("packages", "sources")):
        entry = {key: about[key] for key in ("started", "git", "packages", "sources")}
        folder.amend({"resumed": [*known.get("resumed", []), entry]})


def _decoding(config: RunConfig, proof: Proof) -> dict[str, Any]:
    """What `run.json` and `DONE` say of the proof of decoding."""
    if not config.verify:
        return {"verified": False, "reason": "verify=false"}
    if not proof.questions:
        return {"verified": False, "reason": "no question with visual tokens was answered"}
    return {"verified": True, "proof": asdict(proof)}


def _folder(config: RunConfig, identity: Identity, pruner: Pruner) -> RunFolder:
    tasks = config.tasks
    include = shipped(tasks.include) if tasks.include else None
    copies = datasets.local(tasks, config.data_root)
    whole = {
        **identity.answers(pruner),
        "tasks": {
            "names": list(tasks.metrics),  # which metric the tables show changes no answer
            "limit": config.limit,
            "files": _files_digest(include) if include and set(tasks.metrics) & set(task_files(include)) else None,
            "prompts": family_of(identity.folder).prompts,
            "data": {name: datasets.fingerprint(copy) for name, copy in copies.items()},
            "scoring": task_overrides.scoring(tasks.metrics),
        },
    }
    name = f"{pruner.label}-{digest(whole)[:8]}"
    return RunFolder(Path(config.runs) / slug(config.model.name) / slug(tasks.name) / name, whole)


def _files_digest(folder: Path) -> str:
    """Digest of the task files, data and code below a folder, but not of what runs and tools leave there."""
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        if "run.json" in names:
            folders.clear()
        else:
            files += [p for name in names if not name.startswith(".") and (p := Path(root, name)).is_file()]
    return digest([[str(p.relative_to(folder)), checkpoint.content_digest(p)] for p in sorted(files)])[:16]


def _visual_tokens(tasks: list[str], kept: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean number of visual tokens per question before and after pruning, as the prefill had them, and of K.

    "per_layer" is what a decoder layer sees on average: what is kept is worth that much computation.
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
        means[task] = {name: round(sum(found) / max(len(found), 1), 2) for name, found in counts.items()}
    return means


def _about(config: RunConfig, pruner: Pruner) -> dict[str, Any]:
    """What `run.json` records beside the identity: the configuration, the machine, the code."""
    device = device_of(config.model)
    resolved = asdict(config)
    resolved["method"] = {
        "name": pruner.name,
        **{k: v for k, v in vars(pruner.method).items() if not k.startswith("_")},
        # A file beside the weights by name: its place is of this machine, what it holds stands in `made_from`.
        **{k: file for k, file in pruner.method.companion_files.items() if config.params.get(k) is None},
    }
    resolved.update(keep=pruner.budget.keep, tokens=pruner.budget.tokens, seed=pruner.seed, positions=pruner.positions)
    return {
        "method": slug(pruner.name) + (f" ({pruner.label_suffix})" if pruner.label_suffix else ""),
        "model": config.model.name,
        "budget": pruner.budget.label,
        "made_from": pruner.method.file_metadata,
        "config": json.loads(json.dumps(resolved, default=str)),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "python": platform.python_version(),
        "packages": packages(config.model.attn),
        "harness": harness.__version__,
        "sources": sources(pruner.method),
        "git": _git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout this code runs from; None for an installed package.

    An environment inside a user's own repository is no checkout: harness/ must lie at the top of the repository.
    """
    call = ["git", "-C", str(PACKAGE), "rev-parse", "--show-prefix", "HEAD"]
    try:
        found = subprocess.run(call, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    prefix, _, commit = found.stdout.strip().partition("\n")
    return commit if found.returncode == 0 and prefix == f"{PACKAGE.name}/" else None
