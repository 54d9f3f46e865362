"""Run folders like those of the main command, made from scores per question, for tests of their readers."""

import json

import numpy as np

from harness.core.files import digest, json_lines, to_json
from harness.results import seal
from harness.results.run_folder import RunFolder

TASKS = {"t_one": 40, "t_two": 60}


def make_run(root, method="none", each=None, keep=0.25, tokens=None, metric="acc,none", aggregate=np.mean, **more):
    """Write a finished run; `each`: task -> values per question (or columns of them); `more` goes into the identity.

    `more` may also hold `lam`, `params` (of the method; an own method's count as no defaults),
    `model` (its name), `said` (task -> answers), `scores` (task -> metric -> score) and
    `failed` (task -> number of questions) and `noise` (as in metrics.json). A column `picture` is no metric.
    """
    lam, model, said = more.pop("lam", None), more.pop("model", "m"), more.pop("said", {})
    scores, failed, noise = more.pop("scores", {}), more.pop("failed", {}), more.pop("noise", {})
    limit, params = more.pop("limit", None), more.pop("params", {}) | ({} if lam is None else {"lam": lam})
    baseline = method == "none"
    keep = 1.0 if baseline else None if tokens else keep
    each = {t: v if isinstance(v, dict) else {metric: [_plain(x) for x in v]} for t, v in (each or {}).items()}
    identity = {
        "model": {"weights": model, "dtype": "float32", "packages": {"torch": "2", "lmms-eval": "0.7.3"}},
        "tasks": {"names": list(each), "limit": limit, "files": "f"},
        "method": {"name": method, "params": params},
        "budget": {"keep": keep, "tokens": None if baseline else tokens},
        "seed": 0,
        **more,
    }
    config = {
        "model": {"name": model},
        "tasks": {"name": "+".join(each)},
        "keep": keep,
        "tokens": None if baseline else tokens,
        "method": {"name": method, **params},
    }
    folder = RunFolder(root / f"{method}-{digest(identity)[:8]}", identity)
    about = {"method": method, "model": model, "budget": str(keep), "config": config, "git": None}
    folder.open({**about, "parameters": params})
    metrics_of = {t: {k: v for k, v in columns.items() if k != "picture"} for t, columns in each.items()}
    results = {t: scores.get(t) or {k: float(aggregate(v)) for k, v in m.items()} for t, m in metrics_of.items()}
    counts = {t: len(next(iter(columns.values()))) for t, columns in each.items()}
    primary = {t: metric if metric in columns else next(iter(columns)) for t, columns in results.items()}
    tokens_of = {t: {"all": 100.0, "kept": 25.0 if not baseline else 100.0} for t in each}
    metrics = {"scores": results, "primary": primary, "questions": counts, "visual_tokens": tokens_of, "failed": failed}
    metrics |= {"noise": noise} if noise else {}
    lines = [
        {"key": f"{t} {i}", "task": t, "doc_id": i, "response": text}
        for t, texts in said.items()
        for i, text in enumerate(texts)
    ]
    if lines:
        (folder.path / "responses.jsonl").write_text(json_lines(lines))
    folder.finish(metrics, {t: {"doc_id": list(range(counts[t])), **c} for t, c in each.items()}, {})
    return folder


def sealed_again(path):
    """Let `DONE` have the digests of a run's files as they are now, as if the run had written them so."""
    about = seal.read(path)
    seal.write(path, {key: value for key, value in about.items() if key != seal.DIGESTS})


def as_before_digests(path):
    """Make a finished run one of format 2, whose `DONE` has no digests."""
    for name, change in (("run.json", {"format": 2}), ("DONE", {})):
        about = {**json.loads((path / name).read_text()), **change}
        about.pop(seal.DIGESTS, None)
        (path / name).write_text(to_json(about))


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


def coins(seed, shares, tasks=None):
    """Draw right (1) and wrong (0) answers per task; `shares` is the probability of a right one."""
    rng = np.random.default_rng(seed)
    return {task: (rng.random(n) < shares).astype(float) for task, n in (tasks or TASKS).items()}
