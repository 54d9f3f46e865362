"""scripts/time_start.py: what it runs can be run, and what it reads is there."""

import json

import pytest
from doc_guides import ROOT
from script_modules import script as load

from harness.core.config import validate
from harness.core.overrides import compose


@pytest.fixture(scope="module")
def script():
    return load("time_start")


def test_each_is_given_the_same_questions(script, tmp_path):
    _, (_, place, ours), (_, _, stock) = script.calls([ROOT], 7, tmp_path)
    assert (place, ours[:2]) == (ROOT, ["-m", "harness"])
    run = validate(compose("config", ours[2:]))
    assert (run.limit, list(run.tasks.metrics), run.model.dtype) == (7, script.tasks(), "bfloat16")
    words = dict(zip(stock[2::2], stock[3::2], strict=True))
    assert (words["--limit"], words["--tasks"]) == ("7", ",".join(run.tasks.metrics))
    assert f"max_pixels={run.model.max_pixels}" in words["--model_args"]
    assert words["--batch_size"] == str(run.model.batch_size)


def test_a_process_is_timed_to_its_first_question(script):
    say = "import sys, time; time.sleep(0.2); print('none-1.0: 0 of 2 questions', file=sys.stderr, flush=True); "
    first, end, processor, peak = script.timed(ROOT, ["-c", say + "time.sleep(0.2)", "harness"])
    assert 0.2 <= first < end - 0.1
    assert processor > 0
    assert peak > 0
    with pytest.raises(SystemExit, match=r"failed: .*no such thing"):
        script.timed(ROOT, ["-c", "raise SystemExit('no such thing')"])


def test_scores_of_both_are_read(script, tmp_path):
    of_task = {task: {"alias": task, "samples": 3, "accuracy,none": 0.5} for task in script.tasks()}
    for file, key in (("ours/run/metrics.json", "scores"), ("stock/x/20_results.json", "results")):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(json.dumps({key: of_task}))
    assert script.scores(tmp_path / "ours") == script.scores(tmp_path / "stock")
