"""What a run folder is named after, and that answers on disk are the ones that are scored."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from harness.__main__ import _token_remarks
from harness.core.config import ModelConfig, RunConfig, TasksConfig
from harness.core.files import write_atomic
from harness.evaluation.lmms_model import PrunedModel, Request
from harness.evaluation.preflight import LocatedRun
from harness.evaluation.run_plan import _files_digest, _pruner_run, _tasks
from harness.evaluation.runner import _visual_tokens
from harness.models.model_folder import ModelFolder
from harness.pocket import WEIGHTS
from harness.results.run_folder import RunFolder


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    (folder / "data").mkdir(parents=True)
    (folder / "mine.yaml").write_text("task: mine\n")
    (folder / "data" / "mine.parquet").write_text("rows")
    return folder


def test_what_runs_and_tools_leave_among_the_tasks_changes_no_digest(tasks):
    before = _files_digest(tasks)
    run = RunFolder(tasks / "results" / "runs" / "pocket" / "mine" / "none-1.0-00000000", {})
    with run.lock():
        run.open({}).add([{"key": "a"}], [{"key": "a"}])
        (run.path / "submissions").mkdir()
        (run.path / "submissions" / "mine.json").write_text("{}")
    for folder in (".git", "__pycache__", "data/.cache"):
        (tasks / folder).mkdir()
        (tasks / folder / "file").write_text("text")
    assert _files_digest(tasks) == before


@pytest.mark.parametrize("file", ["mine.yaml", "data/mine.parquet", "utils.py"])
def test_what_belongs_to_the_tasks_changes_it(tasks, file):
    before = _files_digest(tasks)
    write_atomic(tasks / file, "changed")
    assert _files_digest(tasks) != before


def test_which_metric_is_shown_does_not_change_the_folder():
    def folder(**tasks):
        run = RunConfig(method={"name": "none"}, model=ModelConfig(name="m"), tasks=TasksConfig(name="t", **tasks))
        weights = ModelFolder(WEIGHTS)
        pruner = SimpleNamespace(label="none-1.0")
        return _pruner_run(run, pruner, {}, _tasks(LocatedRun(run, {}, weights), weights)).folder.path

    assert folder(metrics={"pope": None}) == folder(metrics={"pope": "pope_f1_score,none"})
    assert folder(metrics={"pope": None}) != folder(metrics={"ai2d": None})


def test_what_a_cut_inside_the_language_model_is_worth_stands_beside_k():
    lines = [{"task": "t", "n": 8, "k": 2, "per_layer": worth} for worth in (4.0, 5.0)]
    tokens = _visual_tokens(["t"], lines)["t"]
    assert tokens == {"all": 8, "kept": 2, "per_layer": 4.5, "budget": 2}
    assert _token_remarks(tokens) == " (4.5 per layer)"
    assert _token_remarks({"all": 8, "kept": 2, "per_layer": 2, "budget": 3}) == " (K: 3.0)"
    assert _token_remarks({"all": 8, "kept": 2, "per_layer": 3, "budget": 3}) == " (K: 3.0, 3.0 per layer)"


class Talkative(PrunedModel):
    """Answers a batch of two questions, each time otherwise."""

    calls = 0

    def _batches(self, requests):
        yield [(Request(key, "t", i, list, None, {}), 0) for i, key in enumerate("ab")]

    def _request(self, request, repeat):
        return request

    def _answer(self, batch, handle):
        Talkative.calls += 1
        lines = [{**r.name, "response": f"{r.key}{self.calls}", "input_tokens": 1, "output_tokens": 1} for r in batch]
        tokens = {"n": 4, "k": self.calls, "per_layer": 1.0, "grids": [], "kept": [*range(self.calls)]}
        return lines, [r.name | tokens for r in batch]


def test_after_a_kill_in_a_batch_what_is_on_disk_is_scored(tmp_path):
    folder = RunFolder(tmp_path / "run", {})
    loaded = SimpleNamespace(model=None, device="cpu", shared=None)
    pruner = SimpleNamespace(attach=lambda model, shared: nullcontext(), label="none-1.0")

    def answers():
        model = Talkative(loaded, pruner, {}, folder.open({}))
        texts = [result.text for result in model.generate_until([SimpleNamespace(args=(0, 0, 0, 0, "t", "test"))] * 2)]
        return texts, [line["response"] for line in model.log.responses.values()], list(model.log.kept.values())

    assert answers()[0] == ["a1", "b1"]
    file = folder.path / "responses.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    texts, logged, kept = answers()
    assert texts == logged == ["a1", "b2"]
    assert [line["k"] for line in kept] == [1, 2]
    assert answers()[0] == texts


class Counting(PrunedModel):
    """Answers with the number of the repeat, and counts the batches."""

    calls = 0

    def _answer(self, batch, handle):
        Counting.calls += 1
        lines = [{**r.name, "response": str(r.repeat), "input_tokens": 1, "output_tokens": 1} for r in batch]
        return lines, [r.name | {"n": 4, "k": 1, "per_layer": 1.0, "grids": [], "kept": [0]} for r in batch]


def test_every_repeat_of_a_question_is_asked_and_found_again(tmp_path):
    folder = RunFolder(tmp_path / "run", {})
    loaded = SimpleNamespace(model=None, device="cpu", config=SimpleNamespace(batch_size=2))
    pruner = SimpleNamespace(attach=lambda model, shared: nullcontext(), label="none-1.0", seed=0)
    messages = [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}]

    class Task:
        config = SimpleNamespace(task="t", metadata=[])

        def messages(self, doc):
            return messages

    requests = [SimpleNamespace(args=("", Task().messages, {}, n, "t", "test"), idx=0) for n in range(2)]
    requests = [request for request in requests for _ in range(3)]  # the same object K times, as lmms-eval does

    def answers():
        model = Counting(loaded, pruner, {}, folder.open({}))
        model.task_dict = {"t": {"test": [None, None]}}
        texts = [result.text for result in model.generate_until(requests)]
        return texts, [(line["doc_id"], line.get("repeat")) for line in model.log.responses.values()]

    asked = [(number, repeat) for number in range(2) for repeat in (None, 1, 2)]
    assert answers() == answers() == (["0", "1", "2"] * 2, asked)
    assert Counting.calls == 3
