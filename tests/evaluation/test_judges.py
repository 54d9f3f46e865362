"""Which tasks ask a judge is found in their code; a judge that does not answer stops the run, or fails a question."""

import asyncio
import json
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest
import requests
from in_process import run
from scripted_model import Scripted
from tiny_models import tiny_processor, tiny_qwen
from tiny_tasks import write_tiny_tasks

from harness.core.config import TasksConfig, validate
from harness.core.config_groups import register
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.core.task_index import lmms_eval_tasks
from harness.evaluation import judges
from harness.evaluation.judges import check_key, judge_keys, with_answers
from harness.evaluation.task_suite import EVERY, TaskSuite

KEYS = ("OPENAI_API_KEY", "AZURE_API_KEY", "AZURE_OPENAI_API_KEY", "JUDGE_API_KEY")


@pytest.fixture(autouse=True)
def without_keys(monkeypatch):
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)


def keys_of(task):
    return judge_keys(lmms_eval_tasks()[task])


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("hallusion_bench_image", ["OPENAI_API_KEY", "AZURE_API_KEY"]),  # requests, in an aggregation
        ("mmbench_cn_dev", ["OPENAI_API_KEY", "AZURE_API_KEY"]),  # in a method of an object
        ("mmvet", ["OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"]),  # lmms-eval's own judge
        ("activitynetqa", ["OPENAI_API_KEY"]),  # the package openai
        ("safety_jailbreakbench_harmful", ["PERSPECTIVE_API_KEY"]),
        ("chartqa_reasoning", ["JUDGE_API_KEY"]),  # two files further
        ("egoschema", []),  # sends answers to a server that asks for no key
    ],
)
def test_the_judge_of_a_task_is_found_with_its_keys(task, keys):
    assert keys_of(task) == keys


@pytest.mark.parametrize(
    "task",
    [
        *("ai2d", "chartqa", "docvqa_val", "mme", "mmstar", "ocrbench", "pope", "scienceqa_img", "textvqa_val"),
        *("seedbench", "videomme", "vinoground", "gqa", "mmmu_val", "realworldqa", "infovqa_val", "vizwiz_vqa_val"),
    ],
)
def test_tasks_without_a_judge_have_none(task):
    assert keys_of(task) is None
    check_key(task, lmms_eval_tasks()[task])


@pytest.mark.parametrize("key", KEYS[:2])
def test_one_key_is_enough_and_none_is_refused(key, monkeypatch):
    file = lmms_eval_tasks()["hallusion_bench_image"]
    message = "task hallusion_bench_image asks a judge over the network: set OPENAI_API_KEY or AZURE_API_KEY$"
    with pytest.raises(UserError, match=message):
        check_key("hallusion_bench_image", file)
    monkeypatch.setenv(key, "key")
    check_key("hallusion_bench_image", file)


def test_a_task_with_a_variant_that_asks_nobody_names_it():
    with pytest.raises(UserError, match=r"; mmbench_en_dev_static needs none$"):
        check_key("mmbench_en_dev", lmms_eval_tasks()["mmbench_en_dev"])
    for task in judges.ASK_NOBODY:
        check_key(task, lmms_eval_tasks()[task])


UTILS = """
import os
import requests
from openai import OpenAI, RateLimitError
from .far import ask as far

KEY = os.getenv("MY_API_KEY", "OTHER_API_KEY")


class Judge:
    def __init__(self):
        self.timeout = 3

    def ask(self, text):
        return requests.post("http://judge", headers={"key": KEY})

    def never(self):
        return OpenAI()


judge = Judge()


def unjudged(doc, results):
    try:
        return requests.get(doc["url"])
    except RateLimitError:
        return None


def judged(doc, results):
    return judge.ask(results[0])


def local(doc, results):
    from openai import OpenAI as Client

    return Client()


def imported(doc, results):
    return far(results)
"""
FAR = 'import os, httpx as h\n\n\ndef ask(text):\n    return h.post(os.environ["FAR_TOKEN"])\n'


@pytest.mark.parametrize(
    ("function", "keys"),
    [("unjudged", None), ("judged", ["MY_API_KEY"]), ("local", []), ("imported", ["FAR_TOKEN"])],
)
@pytest.mark.parametrize("place", ["process_results: {}", "metric_list: [{{metric: a, aggregation: {}}}]"])
def test_a_private_task_is_followed_from_its_file(function, keys, place, tmp_path):
    (tmp_path / "utils.py").write_text(UTILS)
    (tmp_path / "far.py").write_text(FAR)
    (tmp_path / "_base").write_text(place.format(f"!function utils.{function}"))
    task = tmp_path / "t.yaml"
    task.write_text("task: t\ninclude: _base\n")
    assert judge_keys(task) == keys


class Answers(BaseHTTPRequestHandler):
    """Answers a request with the HTTP statuses that it lists, one after the other."""

    asked: dict[str, int]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        statuses = json.loads(body)["statuses"]
        place = self.asked[body] = self.asked.get(body, -1) + 1
        self.send_response(statuses[min(place, len(statuses) - 1)])
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def judge():
    Answers.asked = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def by_requests(url, body, method="POST"):
    return requests.request(method, url, json=body, timeout=9).status_code


def by_httpx(url, body):
    return httpx.post(url, json=body, timeout=9).status_code


def by_async_httpx(url, body):
    async def ask():
        async with httpx.AsyncClient() as client:
            return (await client.post(url, json=body, timeout=9)).status_code

    return asyncio.run(ask())


CLIENTS = [by_requests, by_httpx, by_async_httpx]


def score(ask, url, *statuses, error=None):
    """Ask one question for each list of statuses, as often as it is long, and go on whatever comes."""
    with with_answers("t"):
        for number, of_question in enumerate(statuses):
            seen = [ask(url, {"number": number, "statuses": of_question}) for _ in of_question]
            assert seen == of_question
        if error:
            raise error


@pytest.mark.parametrize("ask", CLIENTS)
def test_a_retry_that_is_answered_is_no_failure(ask, judge):
    score(ask, judge, [500, 429, 200], [503, 200])


@pytest.mark.parametrize("ask", CLIENTS)
def test_a_request_that_is_never_answered_stops_the_run_although_the_task_went_on(ask, judge):
    expected = r"task t: its judge left 2 requests without an answer \(HTTP status 429\): start the run again once"
    with pytest.raises(UserError, match=expected):
        score(ask, judge, [200], [429, 429], [503], [200])


@pytest.mark.parametrize("ask", CLIENTS)
def test_a_judge_that_is_not_there_stops_the_run_before_long(ask):
    asked = []

    def hopeful():
        with with_answers("t"):
            for number in range(100):
                asked.append(number)
                with suppress(Exception):  # as tasks do
                    ask("http://127.0.0.1:9", {"number": number})

    with pytest.raises(UserError, match=r"left 3 requests without an answer \(Connect\w*Error: "):
        hopeful()
    assert len(asked) == judges.HOPELESS


def test_a_judge_that_is_busy_at_first_is_not_given_up(judge):
    with with_answers("t"):
        for status in (429, 200):
            for number in range(2 * judges.HOPELESS):  # several threads do so
                assert by_requests(judge, {"number": number, "statuses": [429, 200]}) == status


def test_an_error_of_the_task_about_a_missing_answer_is_told_as_such_and_another_one_is_not(judge):
    with pytest.raises(UserError, match="its judge left 1 requests"):
        score(by_requests, judge, [401], error=KeyError("choices"))
    with pytest.raises(KeyError):
        score(by_requests, judge, [200], error=KeyError("choices"))


def test_pictures_that_are_not_found_are_no_matter_of_a_judge(judge):
    score(partial(by_requests, method="GET"), judge, [404])
    by_requests(judge, {"statuses": [500]})  # nothing is watched any more


ASKING = """
import json
import requests


def process_results(doc, results):
    number = int(doc["question"].split()[-1].strip("?"))
    answer = requests.post(URL, json={"number": number, "statuses": STATUSES.get(number, [200])}, timeout=9)
    return {"even": float(answer.status_code == 200), "letters": 1.0}
"""


def asking(folder, url, statuses):
    """Write a task whose scoring asks a judge, which answers a question with these statuses; return its folder."""
    tasks = write_tiny_tasks(folder / "tasks", 4)
    utils = (tasks / "utils.py").read_text().partition("def process_results")[0]
    (tasks / "utils.py").write_text(f"URL = {url!r}\nSTATUSES = {statuses!r}\n{ASKING}\n\n{utils}")
    return tasks


def scored(tasks, out):
    suite = TaskSuite(TasksConfig(name="asking", include=str(tasks), metrics={"tiny_stills": "even,none"}))
    suite.looked_at = Scripted.looked_at
    return suite.run(Scripted({"tiny_stills": ["yes"] * 4}), EVERY, out)[0]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(Scripted, "looked_at", {})


def test_a_question_that_a_judge_refuses_is_counted_and_the_others_are_scored(judge, alone, tmp_path):
    metrics = scored(asking(tmp_path, judge, {2: [400]}), tmp_path / "out")
    assert metrics["scores"]["tiny_stills"]["even,none"] == 0.75
    assert metrics["unjudged"] == {"tiny_stills": {"2": "its judge refused the request (HTTP status 400)"}}


@pytest.mark.parametrize("statuses", [{2: [503]}, {2: [429]}, {number: [400] for number in range(4)}])
def test_a_judge_that_is_out_of_order_or_refuses_all_stops_the_run(statuses, judge, alone, tmp_path):
    with pytest.raises(UserError, match=r"task tiny_stills: its judge left \d requests? without an answer"):
        scored(asking(tmp_path, judge, statuses), tmp_path / "out")


def test_a_run_counts_a_question_that_a_judge_refuses_as_failed(judge, alone, tmp_path):
    for part in (tiny_qwen(), tiny_processor()):
        part.save_pretrained(tmp_path / "tiny")
    tasks = asking(tmp_path, judge, {2: [400]})
    call = ["model=qwen25vl7b", f"model.pretrained={tmp_path / 'tiny'}", "model.dtype=float32"]
    call += [f"tasks.include={tasks}", "tasks=[tiny_stills]", "method=random", "keep=0.5", f"runs={tmp_path / 'runs'}"]
    folder, _ = run(validate(compose("config", register(call))))
    assert folder.metrics()["failed"] == {"tiny_stills": 1}
    strict = [*call, "strict=true", f"runs={tmp_path / 'strict'}"]
    with pytest.raises(UserError, match=r"task tiny_stills, question 2: its judge refused the request .*strict=true"):
        run(validate(compose("config", register(strict))))


ADDING = """
import requests


def process_results(doc, results):
    said = {"question": doc["question"], "answer": results[0]}
    return {"even": said, "letters": 1.0}


def judged(results):
    right = 0
    for said in results:
        number = int(said["question"].split()[-1].strip("?"))
        prompt = f"Is this right? {said['question']} {said['answer']}"
        body = {"prompt": prompt, "statuses": STATUSES.get(number, [200])}
        right += requests.post(URL, json=body, timeout=9).status_code == 200
    return right / len(results)
"""


def test_a_judge_that_refuses_while_scores_are_added_up_fails_the_question_it_was_asked_about(judge, alone, tmp_path):
    tasks = asking(tmp_path, judge, {2: [400]})
    utils = (tasks / "utils.py").read_text()
    (tasks / "utils.py").write_text(utils.replace(ASKING, ADDING))
    task = (tasks / "tiny_stills.yaml").read_text()
    (tasks / "tiny_stills.yaml").write_text(
        task.replace("metric: even, aggregation: mean", "metric: even, aggregation: !function utils.judged")
    )
    metrics = scored(tasks, tmp_path / "out")
    assert metrics["scores"]["tiny_stills"]["even,none"] == 0.75
    assert metrics["unjudged"] == {"tiny_stills": {"2": "its judge refused the request (HTTP status 400)"}}


def test_a_request_is_about_the_documents_whose_words_it_shows():
    texts = {0: {"Is it 1?", "yes"}, 1: {"Is it 11?", "yes"}, 2: {"Is it 11?", "yes"}, 3: {"Is it 2?", "no"}}
    assert judges._asked_about('{"prompt": "Q: Is it 11? yes"}', texts) == [1, 2]
    assert judges._asked_about('{"prompt": "Q: Is it 1? yes"}', texts) == [0]
    assert judges._asked_about("something else", texts) == []
    assert judges._asked_about("something else", {0: set()}) == []
