"""The same answers get the same scores from our tasks as from lmms-eval's own command, question by question.

Both score a scripted model on miniature data sets. lmms-eval's command reads its tasks from its own files, with all of
its defaults; only its reads of the Hub end at the miniatures.
"""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import miniature_datasets as miniatures
import pytest
from miniature_files import ROWS
from scripted_model import Scripted

from harness.core.config import TasksConfig
from harness.core.question_sample import QuestionSample
from harness.core.task_index import task_file
from harness.evaluation import datasets
from harness.evaluation.lmms_model import QuestionDigest
from harness.evaluation.task_overrides import OCRBENCH, REASONING_TAGS
from harness.evaluation.task_suite import EVERY, TaskSuite
from harness.results.metrics import numeric, per_question

# Task -> a pool of answers, of which every question gets some: right ones, wrong ones, and ones of odd form
LETTERS = ["A", "B. stem", "C", "(D)", "The answer is B", "", "b"]
ANSWERS = {
    "ai2d": LETTERS,
    "aime24_nofigures_agg8": ["4", "\\boxed{9}", "Answer: 16", "25", "no idea", "0"],
    "chartqa": ["104", "42%", "yes", "Blue.", "7", "50%", "red", ""],
    "docvqa_val": ["March 4", "ITC", "1250", "Invoice", "", "new york", "Dr Lee"],
    "gqa": ["red", "No.", "on the left", "table", "yes", ""],
    # one answer a question, since all turns of a question have to be right: those of the second one are not
    "mmbench_en_dev_static": ["A", "B", "A", "D", "C", "B", "A", "B", "C", "B", "a square", "D"],
    "mme": ["Yes", "No", "yes, there is", "maybe", ""],
    "mmstar": LETTERS,
    "ocrbench": ["centre", "It says RONALDO", "2017", "stop sign", "x^2", "open", "xqz"],
    "pope": ["Yes", "No", "yes.", "maybe", "no, there is not"],
    "scienceqa_img": LETTERS,
    "seedbench": LETTERS,
    "textvqa_val": ["nokia", "Nokia", "samsung", "2", "nokia phone"],
}
FORMS = [
    "{}",
    "<think>It is B, or yes, or 7.</think>{}",
    " {}\n",
    "<analysis>A? no</analysis> {}",
    "Well, no.</think>{}",
]


class InTurns(Scripted):
    """A model whose answers depend on the question and on how often it was asked."""

    def generate_until(self, requests):
        answers, turns = [], {}
        for request in requests:
            doc_id, task = request.args[3:5]
            turn = turns[task, doc_id] = turns.get((task, doc_id), -1) + 1
            pool = self.answers[task]
            answers.append(FORMS[(doc_id + 2 * turn) % len(FORMS)].format(pool[(5 * doc_id + 3 * turn) % len(pool)]))
        return answers


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniatures")
    miniatures.disable_progress_bars()
    for write in (*miniatures.BENCHMARKS[:-1], miniatures.gqa, miniatures.aime24):  # all but the video
        write(root)
    return root


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No way out, and caches of this module alone."""

    connect = socket.socket.connect

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    def only_processes(here, address):  # GQA's pictures are found by several
        return connect(here, address) if here.family == socket.AF_UNIX else refuse()

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(cache))
        patched.setattr("datasets.config.HF_DATASETS_CACHE", cache)
        patched.setattr(socket.socket, "connect", only_processes)
        patched.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module")
def theirs(root, tmp_path_factory):
    """What `python -m lmms_eval --model harness` reports, and its samples: of all questions and of a limit."""
    import datasets as library
    from lmms_eval import __main__ as command
    from lmms_eval import models

    load_dataset, out = library.load_dataset, tmp_path_factory.mktemp("theirs")

    def local(path, *args, token=None, **settings):
        places = [root / path, root / Path(path).name]
        return load_dataset(str(next((place for place in places if place.is_dir()), path)), *args, **settings)

    model = SimpleNamespace(create_from_arg_string=lambda *_: InTurns(ANSWERS))

    def run(tasks, *more):
        call = ["lmms_eval", "--model", "harness", "--tasks", ",".join(tasks), "--log_samples", *more]
        patched.setattr(sys, "argv", [*call, "--output_path", str(out), "--batch_size", "1"])
        _, args = command.parse_eval_args()
        return command.cli_evaluate_single(args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(library, "load_dataset", local)
        patched.setattr(models, "get_model", lambda *_: model)
        patched.chdir(out)
        return {"all": run(ANSWERS), "share": run(["pope"], "--limit", "0.3")}


@pytest.fixture(scope="module")
def ours(root, tmp_path_factory):
    """The metrics and scores of every question that our main job writes."""

    def run(tasks, sample):
        config = TasksConfig(name="contract", metrics=dict.fromkeys(tasks))
        paths = {name: datasets.described(task_file(name, None))["dataset_path"] for name in tasks}
        data = {
            name: next(p for p in (root / path, root / Path(path).name) if p.is_dir()) for name, path in paths.items()
        }
        suite = TaskSuite(config, data=data)
        suite.looked_at = {(name, doc_id): QuestionDigest() for name in tasks for doc_id in range(ROWS)}
        suite.check(sample=sample)
        return suite.run(InTurns(ANSWERS), sample, tmp_path_factory.mktemp("ours"))

    return {"all": run(ANSWERS, EVERY), "share": run(["pope"], QuestionSample(0.3))}


def scored(columns):
    """Leave out what goes into a file for a leaderboard, which we do not write."""
    return {name: values for name, values in columns.items() if not name.startswith("submission,")}


@pytest.mark.parametrize("task", ANSWERS)
def test_scores_are_those_of_lmms_eval(task, ours, theirs):
    scores = scored(ours["all"][0]["scores"][task])
    expected = scored(numeric(theirs["all"][0]["results"][task]))
    if task == "ocrbench":  # lmms-eval divides by all of its questions
        expected = {name: score * OCRBENCH / ROWS for name, score in expected.items()}
    assert scores == pytest.approx(expected)
    assert any(score not in (0, 1, 100) for score in scores.values()), "such answers would hide a difference"


@pytest.mark.parametrize("task", ANSWERS)
def test_every_question_is_judged_as_by_lmms_eval(task, ours, theirs):
    results, samples = theirs["all"]
    expected = per_question(samples[task], list(results["results"][task]), dict.fromkeys(range(ROWS)))
    assert scored(ours["all"][1][task]) == scored(expected)


def test_a_share_asks_the_questions_of_lmms_eval(ours, theirs):
    (metrics, each), (results, samples) = ours["share"], theirs["share"]
    assert metrics["scores"]["pope"] == pytest.approx(numeric(results["results"]["pope"]))
    assert each["pope"]["doc_id"] == [sample["doc_id"] for sample in samples["pope"]] == [0, 1, 2, 3]


def test_the_tags_are_the_default_of_lmms_evals_command(monkeypatch):
    from lmms_eval.__main__ import parse_eval_args

    monkeypatch.setattr(sys, "argv", ["lmms_eval"])
    assert parse_eval_args()[1].reasoning_tags == REASONING_TAGS
