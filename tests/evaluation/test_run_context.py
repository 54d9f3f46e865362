"""Runs of one process share the model, its vision passes and the tasks, and end with the bytes of runs apart."""

from collections import Counter
from dataclasses import replace

import datasets
import pytest
from fork_server import record
from in_process import run
from tiny_llava_next import tiny_llava_next, tiny_llava_next_processor
from tiny_llava_onevision import tiny_llava_onevision, tiny_llava_onevision_processor
from tiny_models import tiny_llava, tiny_llava_processor, tiny_qwen
from tiny_models import tiny_processor as tiny_qwen_processor
from tiny_tasks import write_tiny_tasks

from harness.core.config import TasksConfig, validate
from harness.core.config_groups import register
from harness.core.files import from_json
from harness.core.overrides import compose
from harness.evaluation import lmms_model
from harness.evaluation.run_context import RunContext
from harness.evaluation.task_suite import TaskSuite
from harness.models import loading

QUESTIONS, BATCH = 3, 2
VIDEOS = ("pocket_video", "tiny_clips")
POINTS = [("hiprune", 0.5), ("vispruner", 0.25), ("fastv", 0.25)]  # read the tower; cut inside the language model
TINY = {
    "qwen25vl7b": (lambda: tiny_qwen(layers=4), tiny_qwen_processor, "[tiny_stills,tiny_clips]"),
    "llava15_7b": (lambda: tiny_llava(layers=4), tiny_llava_processor, "[tiny_stills]"),
    "llavaov7b": (tiny_llava_onevision, tiny_llava_onevision_processor, "[tiny_stills,tiny_clips]"),
    "llava16_vicuna7b": (tiny_llava_next, tiny_llava_next_processor, "[tiny_stills]"),
}


@pytest.fixture
def loads(monkeypatch):
    """The names of the models that are loaded."""
    names: list[str] = []
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda config, folder: names.append(config.name) or load(config, folder))
    return names


@pytest.fixture
def work(monkeypatch):
    """Count what is done to questions from here on."""
    done: Counter[str] = Counter()

    def counted(name):
        plain = getattr(lmms_model, name)
        monkeypatch.setattr(lmms_model, name, lambda *args, **more: done.update([name]) or plain(*args, **more))

    def begin() -> Counter:
        for name in ("messages_digest", "to_inputs"):
            counted(name)
        return done

    return begin


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))


@pytest.fixture
def jobs(request, tmp_path, cache):
    """The configurations of a sweep, one for every method and budget."""
    common = ["model=pocket", "tasks=[pocket_existence,pocket_video]", f"limit={QUESTIONS}"]
    name = getattr(request, "param", "pocket")
    if name in TINY:
        build, process, tasks = TINY[name]
        build().save_pretrained(tmp_path / "tiny")
        process().save_pretrained(tmp_path / "tiny")
        include = write_tiny_tasks(tmp_path / "tasks", QUESTIONS)
        common = [f"model={name}", f"model.pretrained={tmp_path / 'tiny'}", "model.dtype=float32"]
        common += [f"tasks={tasks}", f"tasks.include={include}"]
        common += ["model.max_frames=2"] * (name == "llavaov7b")  # of every clip, since a batch has one number

    def of(name: str, gigabytes: float) -> list:
        more = [f"model.batch_size={BATCH}", f"runs={tmp_path / name}", f"share_gb={gigabytes}"]
        points = [[f"method={method}", f"keep={keep}"] for method, keep in POINTS]
        return [compose("config", register([*common, *more, *point])) for point in points]

    return of


@pytest.mark.parametrize(("jobs", "gigabytes"), [("pocket", 2), *((name, 1e-9) for name in TINY)], indirect=["jobs"])
def test_a_sweep_ends_with_the_bytes_of_runs_apart(jobs, loads, work, tmp_path, gigabytes):
    def records(name: str) -> dict:
        return {file.parent.name: record(file.parent) for file in (tmp_path / name).rglob("run.json")}

    for job in jobs("apart", 0):
        context = RunContext()
        run(validate(job), context)
        assert context.vision_cache is None
    apart = records("apart")
    assert len(apart) == 1 + len(POINTS)
    for line in (from_json(line) for found in apart.values() for line in found["kept.jsonl"].splitlines()):
        shown = line.get("videos", [])
        assert sum(video["tokens"] for video in shown) == (line["n"] if line["task"] in VIDEOS else 0)
    assert len({found["kept.jsonl"] for found in apart.values()}) == len(apart)
    loads.clear()
    context, sweep, done = RunContext(), jobs("swept", gigabytes), work()
    for job in sweep:
        context.check_family(job)  # as the command does with all jobs of a sweep before the first
    for job in sweep:
        run(validate(job), context)
    assert records("swept") == apart
    assert len(loads) == 1
    shared = context.vision_cache
    assert shared.computed > 0
    assert shared.reused == shared.computed * len(POINTS)  # the baseline comes first
    questions = sum(found["responses.jsonl"].count(b"\n") for found in apart.values()) // len(apart)
    assert done == {"messages_digest": questions, "to_inputs": shared.computed}


def test_a_single_run_shares_with_its_baseline_or_nothing(jobs):
    job = validate(jobs("alone", 2)[0])
    context = RunContext()
    run(job, context)
    shared = context.vision_cache
    assert shared.computed == shared.reused > 0
    context = RunContext()
    run(replace(job, force=True), context)
    assert context.vision_cache is None


def test_rows_are_read_once_and_what_a_task_notes_is_its_own(tmp_path, cache, monkeypatch):
    folder = write_tiny_tasks(tmp_path / "tasks", QUESTIONS)
    with (folder / "tiny_stills.yaml").open("a") as stream:
        stream.write("process_docs: !function utils.first\n")
    with (folder / "utils.py").open("a") as stream:
        stream.write("\nseen = []\n\n\ndef first(rows):\n    seen.append(rows)\n    return rows.select([0])\n")
    read = datasets.load_dataset
    count: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda **how: count.append(how["path"]) or read(**how))
    suite = TaskSuite(TasksConfig(name="tiny", include=str(folder), metrics={"tiny_stills": None}))
    tasks = [suite.load("tiny_stills") for _ in range(3)]
    assert count == ["parquet"]
    for task in tasks:
        assert task.task_docs["question"] == ["Is it 0?"]
        assert task.dataset_no_image["test"].column_names == ["question", "answer"]
        # Of the functions that the file names, each has a module of its own: none could read what another one notes.
        assert task.config.process_results.__globals__["seen"] == []
    assert len({id(task.config.process_results.__globals__) for task in tasks}) == len(tasks)
