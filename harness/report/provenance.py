"""The origin of a page's numbers: versions, commits, settings, counts, and unfinished runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.config import MIN_FRAMES
from harness.core.errors import UserError, one_line
from harness.core.files import BAD_JSON, from_json
from harness.core.question_sample import in_words
from harness.results.result import Result


def provenance(results: Sequence[Result], runs: Path) -> dict[str, Any]:
    """Return the facts that all runs share, those that differ with their counts, a row per run, and unfinished runs."""
    facts = [_facts(result) for result in results]
    shared, differing = {}, {}
    for key in dict.fromkeys(key for fact in facts for key in fact):
        counts = Counter(fact[key] for fact in facts if key in fact)
        if len(counts) == 1:
            shared[key] = next(iter(counts))
        else:
            differing[key] = counts.most_common()
    return {
        "shared": shared,
        "differing": differing,
        "runs": [_run(result, runs) for result in results],
        "unfinished": unfinished(runs),
    }


def _facts(result: Result) -> dict[str, str]:
    model, config = result.about["identity"]["model"], result.about["config"]
    facts = {
        "commit": str(result.about["git"] or "an installed package")[:12],
        "Python": result.about["python"],
        **{name: version or "absent" for name, version in result.packages.items()},
        "device": model.get("device") if model.get("device") not in (None, "cpu") else f"CPU, {result.about['device']}",
        "dtype": model.get("dtype"),
        "attention": model.get("attn"),
        "batch size": model.get("batch_size"),
        "seed": config["seed"],
        "positions": config["positions"],
        "newlines": config["model"].get("newlines"),
        "frames of a video": _frames(config["model"]),
        "questions": in_words(result.sample),
        f"weights of {config['model']['name']}": model["weights"][:12],
        f"files of tasks {config['tasks']['name']}": (result.about["identity"]["tasks"]["files"] or "of lmms-eval")[
            :12
        ],
    }
    return {key: str(value) for key, value in facts.items() if value is not None}


def _frames(model: Mapping[str, Any]) -> str | None:
    """Return which frames of videos were shown, where they were read at a rate."""
    if (fps := model.get("fps")) is None:
        return None
    least = model.get("min_frames") or MIN_FRAMES
    return f"{fps} a second, at least {least}, at most {model['max_frames']}"


def _run(result: Result, runs: Path) -> dict[str, Any]:
    params = {key: value for key, value in result.about["config"]["method"].items() if key != "name"}
    files = {key: f"digest {about['digest'][:8]}" for key, about in result.about["made_from"].items()}
    return {
        "hash": result.hash,
        "params": ", ".join(f"{key}={value}" for key, value in {**params, **files}.items()),
        "questions": sum(result.metrics["questions"].values()),
        "failed": sum(result.failed.values()),
        "tokens": result.tokens("all"),
        "started": str(result.about.get("started", ""))[:16].replace("T", " "),
        "seconds": result.finished.get("seconds"),
        "commit": str(result.about["git"] or "")[:7],
        "folder": str(result.folder.relative_to(runs)),
    }


def unfinished(runs: Path) -> list[dict[str, Any]]:
    """Return the run folders without the marker DONE: their runs stopped, or still run."""
    folders = []
    for file in sorted(runs.rglob("run.json")):
        if (file.parent / "DONE").exists():
            continue
        try:
            about = from_json(file.read_bytes())
            label = f"{about['method']} at {about['budget']} on {about['model']}"
        except (*BAD_JSON, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({one_line(error)}): move its folder away") from error
        logs = file.parent.glob("responses*.jsonl")  # one per process
        answered = sum(log.read_bytes().count(b"\n") for log in logs)
        folders.append({"folder": str(file.parent.relative_to(runs)), "label": label, "answered": answered})
    return folders
