"""What lmms-eval cannot load, show or score is refused before the model runs, and its results are read with care."""

import json
import math
import sys
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import torch
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import LocalTokenNotFoundError
from lmms_eval.models.registry_v2 import ModelRegistryV2
from loguru import logger
from tenacity import Future, RetryError
from tiny_tasks import write_tiny_tasks

from harness.core.config import TasksConfig
from harness.core.errors import UserError
from harness.core.question_sample import QuestionSample
from harness.evaluation.preflight import check_scoring, check_versions, refuse_collection
from harness.evaluation.task_suite import EVERY, TaskSuite, manifests
from harness.results.metrics import numeric, per_question, primary, value
from methods.base import Method, Selection, Tokens


def test_lmms_eval_knows_us_by_a_name_of_no_family_and_by_the_old_one():
    registry = ModelRegistryV2()
    for manifest in manifests():
        registry.register_manifest(manifest)
    for name in ("harness", "harness_qwen2_5_vl"):
        assert registry.resolve(name).class_path == "harness.evaluation.lmms_model.PrunedModel"


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
    return write_tiny_tasks(tmp_path / "tasks", 2)


def suite(folder, **metrics):
    return TaskSuite(TasksConfig(name="tiny", include=str(folder), metrics=metrics))


def change(folder, old, new, file="utils.py"):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def test_a_suite_that_can_be_scored_passes(tasks):
    suite(tasks, tiny_stills="even,none + letters,none", tiny_clips=None).check()


@pytest.mark.parametrize("metric", ["even", "evne,none", "even,none + odd,none", "even,first"])
def test_a_mistyped_metric_is_refused_before_the_model_runs(tasks, metric):
    with pytest.raises(UserError, match=r"tasks\.metrics\.tiny_stills: no metric .* among even,none, letters,none"):
        suite(tasks, tiny_stills=metric).check()


@pytest.mark.parametrize("kind", [ConnectionError, DatasetNotFoundError, LocalTokenNotFoundError])
@pytest.mark.parametrize("tried", [False, True])
def test_data_that_the_hub_does_not_give_come_with_the_command_that_fetches_them(tasks, monkeypatch, tried, kind):
    def load(*_):
        error = kind("Couldn't reach 'owner/stills' on the Hub")
        raise RetryError(Future.construct(1, error, True)) if tried else error

    monkeypatch.setattr(TaskSuite, "load", load)
    with pytest.raises(UserError, match=r"cannot load task tiny_stills: Couldn't reach 'owner/stills' .* data_root="):
        suite(tasks, tiny_stills=None).check()


def test_a_task_that_exits_is_one_line(tasks):
    change(tasks, 'return [doc["image"].convert("RGB")]', 'raise SystemExit("video a.mp4 does not exist")')
    with pytest.raises(UserError, match=r"cannot load task tiny_stills: SystemExit: video a\.mp4 does not exist"):
        suite(tasks, tiny_stills=None).check()


def run(tasks, monkeypatch, instead):
    monkeypatch.setattr("lmms_eval.evaluator.simple_evaluate", instead)
    loaded = type("Loaded", (), {"config": type("Config", (), {"batch_size": 1})})
    suite(tasks, tiny_stills=None).run(type("Model", (), {"loaded": loaded})(), EVERY, tasks)


@pytest.mark.parametrize("verbose", [False, True])
def test_what_others_say_while_a_task_runs_is_shown_if_verbose_and_never_on_stdout(verbose, tasks, monkeypatch, capfd):
    def leave(**_):
        logger.warning("a bar is late")
        print("a table")
        print("a bar", file=sys.stderr)
        logger.patch(lambda record: record.update(name="harness.evaluation.lmms_model")).warning("question 3 failed")
        raise SystemExit

    logger.add(sys.stdout)  # as lmms-eval does whenever some of its modules are imported
    loaded = type("Loaded", (), {"config": type("Config", (), {"batch_size": 1})})
    monkeypatch.setattr("lmms_eval.evaluator.simple_evaluate", leave)
    made = TaskSuite(TasksConfig(name="tiny", include=str(tasks)), verbose=verbose)
    with pytest.raises(UserError):
        made._score(SimpleNamespace(asked=[0]), "t", type("Model", (), {"loaded": loaded})(), tasks)
    out, err = capfd.readouterr()
    theirs = "WARNING: a bar is late\na table\na bar\n" if verbose else ""
    assert (out, err) == ("", f"{theirs}WARNING: question 3 failed\n")


def test_a_task_that_exits_while_it_runs_is_one_line(tasks, monkeypatch):
    def leave(**_):
        raise SystemExit("video b.mp4 does not exist")

    with pytest.raises(UserError, match=r"task tiny_stills stopped: video b\.mp4 does not exist"):
        run(tasks, monkeypatch, leave)


def test_a_judge_that_is_not_there_stops_a_task_that_would_score_on(tasks, monkeypatch):
    def ask(**_):
        for number in range(9):
            with suppress(Exception):  # as tasks do, which then count a wrong answer
                requests.post("http://127.0.0.1:9", json={"answer": number})

    with pytest.raises(
        UserError, match=r"task tiny_stills: its judge left 3 requests without an answer \(Conn.*are kept"
    ):
        run(tasks, monkeypatch, ask)


def test_a_method_that_breaks_its_contract_is_one_line_and_a_bug_is_not(tasks, monkeypatch):
    class Mine(Method):
        def _select(self, tokens, k, generator):
            return Selection(torch.zeros(k, dtype=torch.int64))

    def prefill(**_):
        Mine().select(Tokens(torch.rand(6, 2), [(1, 2, 3)]), 3)

    with pytest.raises(UserError, match=r"task tiny_stills: mine broke its contract: .* only 1 distinct ones of 3"):
        run(tasks, monkeypatch, prefill)
    with pytest.raises(ValueError, match="someone else's"):
        run(tasks, monkeypatch, lambda **_: (_ for _ in ()).throw(ValueError("someone else's")))


def test_a_task_about_sound_is_refused(tasks):
    change(tasks, 'return [doc["image"].convert("RGB")]', 'return ["a.wav"]')
    with pytest.raises(UserError, match="task tiny_stills asks about audio"):
        suite(tasks, tiny_stills=None).check()


@pytest.mark.parametrize("media", ['"gone.png"', '{"type": "video", "url": ["gone.png"]}'])
def test_a_file_that_is_missing_is_found_before_the_model_is_loaded(tasks, media):
    change(tasks, 'return [doc["image"].convert("RGB")]', f"return [{media}]")
    with pytest.raises(UserError, match=r"task tiny_stills: \[Errno 2\] .*'gone\.png': its data set is not whole"):
        suite(tasks, tiny_stills=None).check()


def test_a_task_without_labels_is_refused(tasks):
    for metric in ("even", "letters"):
        change(tasks, f"metric: {metric}", "metric: submission", "tiny_stills.yaml")
    with pytest.raises(UserError, match="task tiny_stills has no labels"):
        suite(tasks, tiny_stills=None).check()


@pytest.mark.parametrize("others", [[], ["ai2d"]])
def test_a_local_task_with_a_name_of_lmms_evals_own_is_refused(tasks, others):
    (tasks / "tiny_stills.yaml").rename(tasks / "pope.yaml")
    change(tasks, "task: tiny_stills", "task: pope", "pope.yaml")
    with pytest.raises(UserError, match=r"task pope in tasks\.include=.* has a name of lmms-eval's own"):
        check_scoring(TasksConfig(include=str(tasks), metrics=dict.fromkeys(["pope", *others])), EVERY)


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [("mme", 3, "in pairs: limit=3"), ("vinoground", 8, "leave limit=8 out"), ("mmbench_cn_dev", None, "a judge")],
)
def test_what_would_fail_after_all_answers_is_refused(name, limit, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("AZURE_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        check_scoring(TasksConfig(metrics={name: None}), QuestionSample(limit))


def test_what_can_be_scored_is_not_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    tasks = TasksConfig(metrics=dict.fromkeys(["mme", "pope", "mmbench_en_dev", "mmbench_en_dev_static"]))
    check_scoring(tasks, QuestionSample(4))
    check_scoring(TasksConfig(metrics={"vinoground": None}), EVERY)


def test_a_filelock_that_lmms_eval_cannot_use_is_refused_before_anything_is_loaded(monkeypatch):
    check_versions()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"does not run with filelock \S+, which lacks filelock._api: pip install 'filelock<4'"
    ):
        check_versions()


def test_a_group_or_a_tag_is_refused_with_its_tasks():
    with pytest.raises(UserError, match=r"mmbench is a group of tasks: .*\[mmbench_en_dev,.*,mmbench_ru_dev\]"):
        refuse_collection("mmbench")
    with pytest.raises(UserError, match=r"blink is a group of tasks: .*\[blink_art_style,blink_counting,"):
        refuse_collection("blink")
    with pytest.raises(UserError, match=r"blink_groups is a tag of tasks: .*\[blink_art_style,blink_counting,"):
        refuse_collection("blink_groups")
    refuse_collection("pope")
    refuse_collection("no_such_task")


def test_only_finite_numbers_are_kept():
    found = {
        "a,none": 1,
        "b,none": math.nan,
        "c,none": (1, 2, 3),
        "d,none": ["x", "y"],
        "e,none": [1.0, math.inf],
        "a_stderr,none": 0.1,
        "alias": "x",
        "f,none": None,
        "g,none": {"h": 1},
        "i,none": True,
    }
    assert numeric(found) == {"a,none": 1.0, "c,none": [1.0, 2.0, 3.0]}


def test_metric_expressions():
    scores = {"a,none": 1.0, "b,none": 2.5, "c,none": [1.0, 2.0, 3.0]}
    assert value(scores, "a,none") == 1
    assert value(scores, "a,none + b,none") == 3.5
    assert value(scores, "c,none[2]") == 3


@pytest.mark.parametrize("metric", ["e,none", "c,none", "c,none[3]", "a,none + e,none", None])
def test_a_metric_that_is_not_there_is_named(metric):
    with pytest.raises(UserError, match="among a,none, c,none"):
        value({"a,none": 1.0, "c,none": [1.0, 2.0]}, metric)


def test_the_first_metric_is_shown_unless_another_is_asked_for():
    scores = {"t": {"a,none": 1.0, "b,none": 2.0}}
    assert primary(scores, {"t": None}) == {"t": "a,none"}
    assert primary(scores, {"t": "b,none"}) == {"t": "b,none"}
    with pytest.raises(UserError, match="no metric 'c,none'"):
        primary(scores, {"t": "c,none"})


def test_the_score_of_every_question_is_kept_in_the_order_of_the_questions_whatever_the_filter():
    columns = ["alias", "exact,strict", "exact_stderr,strict", "exact,flexible", "record,flexible"]
    strict = [{"doc_id": 1, "exact": np.float32(0.5)}, {"doc_id": 0, "exact": True}]
    flexible = [
        {"doc_id": 1, "exact": math.nan, "record": {"score": np.int64(3), "of": {1}}},
        {"doc_id": 0, "exact": 1},
    ]
    found = per_question(strict + flexible, columns, {0: "ab" * 32, 1: None})
    assert found == {
        "doc_id": [0, 1],
        "picture": ["ab" * 8, ""],
        "exact,strict": [True, 0.5],
        "exact,flexible": [1, None],
        "record,flexible": [None, {"score": 3.0, "of": [1]}],
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found
