"""limit=, sample= and questions=: which questions they choose, what they are known by, and what is refused."""

import pytest
from composed_sweeps import composed

from harness.core.errors import UserError
from harness.core.question_sample import QuestionSample, in_words


def config(*overrides: str):
    return composed("method=none", *overrides)


def test_the_default_is_every_question():
    sample = config().question_sample
    assert list(sample.numbers("t", 5)) == [0, 1, 2, 3, 4]
    assert sample.whole
    assert sample.identity == {"limit": None}


@pytest.mark.parametrize(
    ("limit", "total", "count"), [(3, 10, 3), (30, 10, 10), (0.25, 10, 3), (0.2, 10, 2), (0.001, 10, 1)]
)
@pytest.mark.parametrize("order", ["first", "even", "random"])
def test_a_limit_is_a_count_or_a_share_rounded_up(order, limit, total, count):
    numbers = list(QuestionSample(limit, order).numbers("t", total))
    assert len(numbers) == count
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(range(total))


def test_a_share_counts_as_lmms_eval_counts_it():
    from types import SimpleNamespace

    from lmms_eval.evaluator_utils import get_sample_size

    for total in (1, 7, 100, 951):
        for share in (0.001, 0.1, 0.5, 0.99):
            theirs = get_sample_size(SimpleNamespace(eval_docs=range(total)), share)
            assert len(QuestionSample(share).numbers("t", total)) == theirs


def test_even_questions_have_equal_distances_and_random_ones_depend_on_seed_and_task():
    assert list(QuestionSample(4, "even").numbers("t", 12)) == [0, 3, 6, 9]
    draws = {
        (seed, task): tuple(QuestionSample(20, "random", seed).numbers(task, 1000))
        for seed in (0, 1)
        for task in ("t", "u")
    }
    assert len(set(draws.values())) == 4
    identity = {"limit": 20, "sample": "random", "sample_seed": 1}
    assert QuestionSample(20, "random", 1).identity == identity
    assert QuestionSample(20, "even", 1).identity == {"limit": 20, "sample": "even"}
    assert draws[0, "t"] == tuple(QuestionSample(0.02, "random", 0).numbers("t", 1000))
    counts = [0] * 10
    for seed in range(400):
        for number in QuestionSample(5, "random", seed).numbers("t", 10):
            counts[number] += 1
    assert min(counts) > 140  # of 200 expected
    assert max(counts) < 260


def test_single_questions_choose_their_tasks():
    run = config("questions=[pocket_text/7,pocket_existence/3,pocket_text/2]")
    assert list(run.tasks.metrics) == ["pocket_existence", "pocket_text"]
    assert run.question_sample.numbers("pocket_text", 40) == [2, 7]
    assert run.question_sample.identity == {
        "limit": None,
        "questions": ["pocket_existence/3", "pocket_text/2", "pocket_text/7"],
    }
    with pytest.raises(UserError, match=r"task pocket_text has no question pocket_text/7, .* is pocket_text/6"):
        run.question_sample.numbers("pocket_text", 7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["limit=0"], "limit must be null or a whole number of at least 1, or a share between 0 and 1, got 0"),
        (["limit=1.5"], "or a share between 0 and 1, got 1.5"),
        (["limit=1.0"], "or a share between 0 and 1, got 1.0"),
        (["limit=2", "sample=last"], "sample must be one of first, even, random, got last"),
        (["sample=even"], "sample=even chooses which questions a limit leaves: pass limit= too"),
        (["limit=2", "questions=[pocket_text/1]"], "questions= and limit=2 exclude each other"),
        (["questions=pocket_text/1"], r"questions must be null or a list of TASK/NUMBER, .* got pocket_text/1"),
        (["questions=[]"], "questions must be null or a list"),
        (["questions=[pocket_text]"], "questions must be a list of TASK/NUMBER, .* got pocket_text"),
        (["questions=[pocket_text/1,pocket_text/01]"], "questions names pocket_text/1 twice"),
        (["questions=[pope/1]"], "questions names pope, but the tasks are pocket_"),
        (["tasks=[pocket_text,pocket_text]"], r"tasks=\[pocket_text,pocket_text\] has pocket_text twice"),
        (["tasks=[pocket,pocket_text]"], "has pocket_text twice: name every task once"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        config(*overrides)


def test_every_choice_has_its_words():
    samples = [
        QuestionSample(),
        QuestionSample(20),
        QuestionSample(0.1, "even"),
        QuestionSample(5, "random", 3),
        QuestionSample(single={"t": [1, 4]}),
    ]
    assert [in_words(sample.identity) for sample in samples] == [
        "all questions",
        "the first 20 questions of each task",
        "10 % of the questions of each task, at even distances",
        "5 questions of each task, at random (seed 3)",
        "the questions t/1, t/4",
    ]
