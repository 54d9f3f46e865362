"""Scores and answers are paired question by question, and only like is compared with like."""

import pytest
from run_folders import make_run, sealed_again

from harness.core.errors import UserError
from harness.results.frames import answers, questions
from harness.results.result import Result, merge_task_runs
from harness.results.stats import agreement
from harness.results.summary import summary


def results(*folders):
    return [Result.of(folder) for folder in folders]


def test_agreement_is_of_words_and_not_of_blanks_or_case(tmp_path):
    said = {"t_one": ["yes", "No", "b"]}, {"t_one": [" yes", "no.", "B"]}
    runs = [make_run(tmp_path, m, {"t_one": [1.0, 1.0, 0.0]}, said=s) for m, s in zip(("none", "x"), said, strict=True)]
    found = answers(results(*runs))
    assert agreement(*(found[name] for name in found)) == pytest.approx(100 * 2 / 3)


def test_other_questions_are_refused(tmp_path):
    long, short = results(make_run(tmp_path, each={"t": [1.0] * 5}), make_run(tmp_path, "x", {"t": [1.0] * 4}, limit=4))
    with pytest.raises(UserError, match=r"different questions of t \(5 and 4\)"):
        questions([long, short])


def test_other_data_is_refused(tmp_path):
    mine = make_run(tmp_path, each={"t": [1.0]})
    theirs = make_run(tmp_path, "x", {"t": [1.0]}, tasks={"names": ["t"], "limit": None, "files": "g"})
    with pytest.raises(UserError, match="run on different data"):
        questions(results(mine, theirs))


def test_another_copy_of_the_data_is_refused_joined_or_not(tmp_path):
    def run(method, task, copy):
        tasks = {"names": [task], "limit": None, "files": None, "data": {task: copy} if copy else {}}
        return make_run(tmp_path / f"{method}{task}{copy}", method, {task: [1.0]}, tasks=tasks)

    mine, same, other, hub = (
        run(*about) for about in (("x", "t", "1"), ("y", "t", "1"), ("z", "t", "2"), ("w", "t", ""))
    )
    assert len(questions(results(mine, same))) == 1
    for unlike in (other, hub):
        with pytest.raises(UserError, match=r"run on different data: data_root= gave them different copies for t$"):
            questions(results(mine, unlike))
    one, two = merge_task_runs(results(mine, run("x", "s", "1"), other, run("z", "s", "1")))
    with pytest.raises(UserError, match=r"different copies for t$"):
        questions([one, two])


def test_a_run_without_the_score_of_every_question_says_what_to_do(tmp_path):
    folder = make_run(tmp_path, each={"t": [1.0]})
    (folder.path / "scores.json").unlink()
    sealed_again(folder.path)
    with pytest.raises(UserError, match=r"no scores.json.*force=true"):
        questions(results(folder))
    frame, notes = summary(results(folder))
    assert frame["score"].iloc[0] == 1.0
    assert "no scores.json" in notes[0]
