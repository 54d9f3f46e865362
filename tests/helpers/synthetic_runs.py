"""Synthetic run folders, like those of the main command, for tests that read many of them."""

from pathlib import Path
from typing import Any

import numpy as np

from harness.core.files import digest, slug
from harness.results.run_folder import RunFolder

TASKS = {"one": "accuracy,none", "two": "accuracy,none"}
NONE = "none"


def write_run(
    root: Path,
    method: str,
    keep: float = 0.25,
    skill: float = 0.6,
    questions: int = 20,
    tasks: dict[str, str] | None = None,
    model: str = "m",
    tokens: int = 100,
    finish: bool = True,
    suite: str = "suite",
    recorded: dict[str, Any] | None = None,
    said: str = "",
    run_seed: int | None = None,
    **params: object,
) -> RunFolder:
    """Write a run whose questions are right with probability `skill`; hard questions are the same for all methods.

    `recorded` goes into run.json, and every answer ends in `said`.
    """
    tasks = tasks or TASKS
    keep = 1.0 if method == NONE else keep
    config = {
        "method": {"name": method, **params},
        "model": {"name": model, "pretrained": "/no/such/model"},
        "tasks": {"name": suite, "include": None, "metrics": tasks},
        "keep": keep,
        "tokens": None,
        "seed": 0,
        "positions": "keep",
        "limit": None,
    }
    identity = {
        "model": {"weights": model, "packages": {"torch": "2"}, "dtype": "float32"},
        "method": {"name": method, "params": params},
        "budget": {"keep": keep, "tokens": None},
        "tasks": {"names": list(tasks), "limit": None, "files": None},
    }
    about = {"method": method, "model": model, "budget": str(keep), "config": config, "git": "abc", "made_from": {}}
    about |= {"device": "x", "python": "3", "started": "2026-01-01T00:00:00+00:00"}
    identity |= {"seed": 0} if recorded else {} if run_seed is None else {"seed": run_seed}
    name = f"{slug(method)[:40]}-{keep}-{digest(identity)[:8]}"
    folder = RunFolder(root / slug(model)[:40] / slug(suite)[:40] / name, identity)
    log = folder.open(about | (recorded or {}))
    rng = np.random.default_rng(int(digest(identity)[:8], 16))
    hard = np.random.default_rng(0).random((len(tasks), questions))
    responses, kept, scores = [], [], {}
    k = max(1, round(keep * tokens))
    for row, task in enumerate(tasks):
        right = (0.6 * hard[row] + 0.4 * rng.random(questions) < skill) | (method == NONE)
        scores[task] = {"doc_id": list(range(questions)), tasks[task]: right.astype(float).tolist()}
        for doc in range(questions):
            name = {"key": f"{task} {doc} {digest(identity)}", "task": task, "doc_id": doc}
            answer = ("yes" if right[doc] else "no") + said
            responses.append(name | {"response": answer, "input_tokens": tokens + 9, "output_tokens": 2})
            chosen = sorted(rng.choice(tokens, k, replace=False).tolist())
            grid = [1, 10, tokens // 10]
            kept.append(name | {"n": tokens, "k": k, "per_layer": float(k), "grids": [grid], "kept": chosen})
    log.add(responses, kept)
    if finish:
        means = {task: {tasks[task]: float(np.mean(scores[task][tasks[task]]))} for task in tasks}
        counts = {task: {"all": tokens, "kept": k, "per_layer": k, "budget": k} for task in tasks}
        metrics = {"scores": means, "primary": tasks, "questions": dict.fromkeys(tasks, questions)}
        folder.finish(
            {**metrics, "visual_tokens": counts}, scores, {"finished": "2026-01-01T00:01:00+00:00", "seconds": 60}
        )
    return folder
