"""python -m harness.analyze breakdown: the parts of a benchmark, as lmms-eval's own code scores them."""

import pandas as pd
import pytest
from run_folders import make_run

from harness.analyze import breakdown
from harness.core.errors import UserError
from harness.core.overrides import compose

METRIC = "videomme_perception_score,none"
LENGTHS = ["short"] * 4 + ["medium"] * 3 + ["long"] * 3
SAID = ["A", "A", "B", "", "A", "B", "B", "A", "A", "A"]  # right: A
ABOUT = {"category": "Knowledge", "sub_category": "Law", "task_category": "Counting Problem", "answer": "A"}


def records():
    return [
        {**ABOUT, "duration": length, "pred_answer": said, "score": float(said == "A")}
        for length, said in zip(LENGTHS, SAID, strict=True)
    ]


def write(root, task="videomme", values=None):
    pictures = [f"{i // 2:016}" for i in range(10)]
    columns = {task: {METRIC: values or records(), "picture": pictures}}
    make_run(root, "random", columns, metric=METRIC, scores={task: {METRIC: 60.0}})


def run(tmp_path, *more):
    call = [f"runs={tmp_path}/runs", f"out={tmp_path}/out", *more]
    breakdown.breakdown(compose("analyze_breakdown", call))
    return pd.read_csv(tmp_path / "out" / "m.csv").set_index("part")


def test_lengths_of_video_mme_are_those_that_lmms_eval_logs(tmp_path, capsys):
    from lmms_eval.tasks.videomme import utils
    from loguru import logger

    logged = []
    sink = logger.add(lambda message: logged.append(message.record["message"]), level="INFO")
    assert utils.videomme_aggregate_results(records()) == 60
    logger.remove(sink)
    write(tmp_path / "runs")
    table = run(tmp_path)
    assert table["questions"].to_dict() == {"long": 3, "medium": 3, "short": 4}
    for length, accuracy in table["accuracy"].items():
        assert f"Evaluation on video Type: {length}: {100 * accuracy: .1f}%" in logged
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert '"analysis": "breakdown"' in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "out" / "m.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["by=durations"], r"the records of videomme have no durations, they have answer, .*: did you mean duration"),
        (["task=mlvu_dev"], "no run below .* has task=mlvu_dev"),
    ],
)
def test_what_is_not_there_is_one_line(more, message, tmp_path):
    write(tmp_path / "runs")
    with pytest.raises(UserError, match=message):
        run(tmp_path, *more)


def test_records_that_do_not_say_what_is_right_are_refused(tmp_path):
    write(tmp_path / "runs", values=[{"duration": "short", "score": "A"}] * 10)
    with pytest.raises(UserError, match="do not say whether an answer is right"):
        run(tmp_path)
