"""The paper's fourteen benchmarks, each by lmms-eval's own task on data in the real columns, scored as by hand.

Among the scripted answers to every benchmark some are right, some wrong, some empty or beside the question.
"""

import json
from fractions import Fraction

import miniature_datasets as miniatures
import pytest
from composed_sweeps import composed
from scripted_model import Scripted

from harness.core.config import TasksConfig
from harness.core.errors import UserError
from harness.core.question_sample import QuestionSample
from harness.evaluation import datasets
from harness.evaluation.task_overrides import check_prompts
from harness.evaluation.task_suite import EVERY, TaskSuite
from harness.results.benchmarks import facts
from harness.results.metrics import value

SUITES = ("paper_image", "paper_video")
METRICS = {task: metric for suite in SUITES for task, metric in composed(f"tasks={suite}").tasks.metrics.items()}

# Task -> the answers to its questions, in order. Right ones are those marked in `RIGHT`, unless said otherwise there.
ANSWERS = {
    # a letter with a period in front is taken for the answer; case and punctuation do not count, words do
    "ai2d": ["A", "B. stem", "c", " D.", "B", "stem", "(C)", "", "The answer is A", "B", "C", "A. root"],
    # numbers within 5 %, a year 2.2 % off among them; text without regard to case, but to a period
    "chartqa": ["104", "42%", "yes", "Blue.", "7.4", "0.51", "1960", "about 3.5", "0", "", "13", "RED"],
    "docvqa_val": [
        "March 4",
        "ITC",
        "1250",
        "Invoices",
        "Jones",
        "",
        "new york",
        "B",
        "the total",
        "2/3/91",
        "7",
        "Dr Lee",
    ],
    # four questions asked in 2, 4, 4 and 2 turns: one is right if all of its turns are
    "mmbench_en_dev_static": [
        *("A", "The answer is B."),
        *("A", "D", "C", "A"),  # in the last turn the circle is B
        *("a circle", "It is a circle", "(C)", "B) a circle"),
        *("A", "no idea"),
    ],
    "mmbench_cn_dev_static": [
        *("A", "答案是B"),
        *("A", "D", "C", "B"),
        *("圆形", "不知道", "", "B"),
        *("A. 圆形", "B"),
    ],
    # pairs of Yes and No: a point a right answer, and another hundred percent for a pair
    "mme": ["Yes", "No", "yes, there is", "Yes", "maybe", "no.", "", "", "Y", "n", "No", "Yes"],
    "mmstar": ["A", "The answer is B", "A", "(D)", "", "B. triangle", "C", "no idea", "A", "C", "?", "A"],
    # the answer is somewhere in the text, without regard to case, to spaces in formulas, to the width of Chinese digits
    "ocrbench": [
        *("centre", "It says RONALDO", "tea", "hello", "2017", ""),
        *("stop sign", "closed", "１２", "Subtotal", "9,00", "x^2"),
    ],
    "pope": ["Yes", "yes", "Yes.", "No", "yes", "maybe", "no", "No", "Yes", "", "no", "no, there is not"],
    "scienceqa_img": ["A", "B. soil", "c", "B", "B)", "A. rock", "a.", "B", "", "A.", "b", "D"],
    "textvqa_val": [
        *("nokia", "Nokia", "nokia.", "nokia", "nokia", "nokia"),  # said by 10, 4, 3, 2, 1 and none of ten people
        *("samsung", "", "the Nokia", "nokia phone", "two", "nokia"),
    ],
    # the first character, whatever the word: "The" is a T
    "seedbench": ["A", "B. green", "c", "(D)", "A", "", "D", "The answer is D", "A", "A", "C.", "D"],
    "videomme": ["A", "B.", "The best answer is: C", "A", "", "(B)", "C. a cup", "???", "A", "C", "C", "D) four"],
    # GT is A for pos and B for neg; texts are right for every second number, videos for every fifth
    "vinoground": [
        (right if number % divisor == 0 else wrong)
        for divisor in (2, 5)
        for number in range(500)
        for right, wrong in (("A", "A."), ("b. the second", ""))
    ],
}


def mean(*scores):
    return sum(map(Fraction, scores)) / len(scores)


RIGHT = {
    "ai2d": {"exact_match,flexible-extract": Fraction(7, 12)},
    "chartqa": {
        "relaxed_overall,none": Fraction(7, 12),
        "relaxed_human_split,none": Fraction(4, 6),
        "relaxed_augmented_split,none": Fraction(3, 6),
    },
    # 1 - edit distance / length, and 0 below a half
    "docvqa_val": {"anls,none": mean(1, 1, "4/5", "7/8", 0, 0, 1, 0, "5/9", 1, 0, "6/7")},
    "mmbench_en_dev_static": {"gpt_eval_score,none": 50},
    "mmbench_cn_dev_static": {"gpt_eval_score,none": 75},
    # existence: a whole pair, 200, and half of one, 50; count: half of one; colour: none; code: whole; sense: none
    "mme": {"mme_perception_score,none": mean(200, 50) + 50 + 0, "mme_cognition_score,none": 200 + 0},
    # mean over kinds of question, not over questions
    "mmstar": {
        "average,none": mean("2/3", "1/2", "3/4", 0),
        "coarse perception,none": mean("2/3", "1/2"),
        "math,none": Fraction(3, 4),
        "logical reasoning,none": 0,
    },
    "ocrbench": {"ocrbench_accuracy,none": Fraction(8, 12)},
    # 3 of 6 yes, one said to be no; 3 of 6 no, one said to be yes
    "pope": {
        "pope_accuracy,none": Fraction(6, 12),
        "pope_precision,none": Fraction(3, 4),
        "pope_recall,none": Fraction(3, 4),
        "pope_f1_score,none": Fraction(3, 4),
        "pope_yes_ratio,none": Fraction(1, 2),
    },
    "scienceqa_img": {"exact_match,none": Fraction(6, 12)},
    # a third for each other person who said so: of n people, n count n - 1 others and 10 - n count n
    "textvqa_val": {"exact_match,none": mean(1, 1, "9/10", "6/10", "3/10", 0, 0, 0, 1, 0, 1, "6/10")},
    "seedbench": {
        "seed_all,none": Fraction(7, 12),
        "seed_image,none": Fraction(4, 8),
        "seed_video,none": Fraction(3, 4),
    },
    "videomme": {"videomme_perception_score,none": Fraction(800, 12)},
    "vinoground": {"vinoground_score,none": [50, 20, 10]},
}
SHOWN = {"mme": 175, "vinoground": 10}  # in the tables, where that is not the first of RIGHT
LETTER = "\nAnswer with the option's letter from the given choices directly"
PHRASE = "\nAnswer the question using a single word or phrase."
ASKED = {  # the end of the first prompt, and the tokens it allows (None: as many as the wrapper's default)
    "ai2d": ("What is labelled 0?\nA. root\nB. stem\nC. leaf\nD. seed" + LETTER + ".", 16),
    "chartqa": ("What does bar 0 say?\nAnswer the question with a single word.", 16),
    "docvqa_val": ("What stands in line 0?" + PHRASE, 32),
    "mmbench_en_dev_static": (
        "What is shown? There are several options:\nA. a circle\nB. a square\n" + LETTER + ".",
        1024,
    ),
    "mmbench_cn_dev_static": (
        "图中是什么？ There are several options:\nA. 圆形\nB. 方形\n\n请直接使用所提供的选项字母作为答案回答。",
        256,
    ),
    "mme": ("Is it Yes?" + PHRASE, 16),
    "mmstar": ("Options: A: one, B: two, C: three, D: four" + LETTER, None),
    "ocrbench": ("what is written in the image?", 128),
    "pope": ("Is there a dog in the image?" + PHRASE, 128),
    "scienceqa_img": ("Read the table.\nWhich holds water best?\nA. sand\nB. soil\nC. rock" + LETTER + ".", 16),
    "textvqa_val": ("What brand is it?" + PHRASE, None),
    "seedbench": ("Which colour is the ground?\nA. red\nB. green\nC. blue\nD. orange" + LETTER + ".", None),
    "videomme": ("How many cups are there?\nA. one\nB. two\nC. three\nD. four\n" + LETTER + ".", 16),
    "vinoground": ("Which caption fits the video?\nPlease only output one English character.", 16),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniatures")
    miniatures.main(root)
    return root


@pytest.fixture(autouse=True)
def offline(monkeypatch, cache, no_network):
    """Caches of its own, and no way out: a scorer that asks over the network fails here."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key that must not be used")


def suite(root, *tasks, **more):
    config = TasksConfig(name="paper", metrics={task: METRICS[task] for task in tasks})
    made = TaskSuite(config, data=datasets.local(config, str(root)), **more)
    made.looked_at = Scripted.looked_at
    return made


def test_every_benchmark_of_the_paper_is_here():
    assert set(METRICS) == set(ANSWERS) == set(RIGHT) == set(ASKED)
    assert len(METRICS) == 14


@pytest.mark.parametrize("task", METRICS)
def test_a_benchmark_is_loaded_asked_and_scored_as_by_hand_in_every_run_of_a_process(task, root, tmp_path):
    paper = suite(root, task)
    paper.check()
    for _ in range(2 if task != "vinoground" else 1):
        model = Scripted(ANSWERS)
        metrics, each = paper.run(model, EVERY, tmp_path)
        found = metrics["scores"][task]
        for key, right in RIGHT[task].items():
            assert found[key] == pytest.approx(right if isinstance(right, list) else float(right)), key
        shown = SHOWN.get(task, next(iter(RIGHT[task].values())))
        assert value(found, METRICS[task]) == pytest.approx(float(shown))
    questions = len(ANSWERS[task])
    assert metrics["questions"] == {task: questions}
    assert each[task]["doc_id"] == list(range(questions))
    json.dumps([metrics, each], allow_nan=False)
    content, generation = model.asked[task][0]
    assert content[-1]["text"].endswith(ASKED[task][0])
    assert generation.get("max_new_tokens") == ASKED[task][1]
    assert not generation.get("do_sample")
    shown = {part["type"] for part in content[:-1]}
    assert shown == ({"video"} if task in ("videomme", "vinoground") else {"image"})


def test_the_published_scale_is_that_of_percent_and_points():
    """`scale` multiplies what is a share here; MMBench, MME and the videos come in percent and points."""
    scale = {task: about["scale"] for about in facts()["benchmarks"].values() for task in about["tasks"]}
    for task in METRICS:
        shown = SHOWN.get(task, next(iter(RIGHT[task].values())))
        assert scale[task] == (100 if shown <= 1 else 1), task


def test_several_runs_in_one_process_score_as_one_does(root, tmp_path):
    tasks = ("ocrbench", "mme", "ocrbench", "pope")
    scores = [suite(root, task).run(Scripted(ANSWERS), EVERY, tmp_path)[0]["scores"][task] for task in tasks]
    wrong = suite(root, "ocrbench").run(Scripted({"ocrbench": ["-"] * 12}), EVERY, tmp_path)[0]["scores"]["ocrbench"]
    assert scores[0] == scores[2] == {"ocrbench_accuracy,none": pytest.approx(8 / 12)}
    assert wrong == {"ocrbench_accuracy,none": 0}


@pytest.mark.parametrize("task", ["ai2d", "chartqa", "pope", "videomme"])
@pytest.mark.parametrize("sample", [QuestionSample(5, "random", 2), QuestionSample(0.4, "even"), "single"])
def test_chosen_questions_are_asked_and_scored_as_among_all(task, sample, root, tmp_path):
    """The filter of ai2d looks at the choices of each question, so that answers and rows have to stay together."""
    sample = QuestionSample(single={task: [2, 7, 11]}) if sample == "single" else sample
    numbers = list(sample.numbers(task, 12))
    paper, model = suite(root, task), Scripted(ANSWERS)
    paper.check(sample=sample)
    _, whole = paper.run(Scripted(ANSWERS), EVERY, tmp_path)
    metrics, each = paper.run(model, sample, tmp_path)
    assert len(model.asked[task]) == len(numbers) == metrics["questions"][task]
    assert each[task] == {name: [column[n] for n in numbers] for name, column in whole[task].items()}


def test_questions_that_split_a_pair_of_mme_are_refused(root):
    suite(root, "mme").check(sample=QuestionSample(single={"mme": [0, 1, 6, 7]}))
    with pytest.raises(UserError, match="its 2 chosen questions split a pair"):
        suite(root, "mme").check(sample=QuestionSample(2, "even"))
    with pytest.raises(UserError, match=r"or are not of perception: try limit=\d+"):
        suite(root, "mme").check(sample=QuestionSample(single={"mme": [8, 9]}))
    with pytest.raises(UserError, match="its last one is mme/11"):
        suite(root, "mme").check(sample=QuestionSample(single={"mme": [12]}))


def test_a_limit_counts_the_questions_that_were_asked(root, tmp_path):
    found = suite(root, "ocrbench").run(Scripted(ANSWERS), QuestionSample(4), tmp_path)[0]
    assert found["scores"]["ocrbench"] == {"ocrbench_accuracy,none": 0.75}


@pytest.mark.parametrize("task", ["ai2d", "docvqa_val", "mmbench_en_dev_static", "mmbench_cn_dev_static", "pope"])
def test_no_answer_however_broken_stops_the_scoring(task, root, tmp_path):
    broken = ["", " ", "\x00\x0b", "\n\n", "A" * 3000, "🙂", "nan", "None", "((((", "\\frac{", "0/0", "-"]
    metrics, _ = suite(root, task).run(Scripted({task: broken}), EVERY, tmp_path)
    assert value(metrics["scores"][task], METRICS[task]) < 20
    assert metrics["scored_by"]["lmms-eval"].count(".") == 2
    assert metrics["scored_by"]["tasks"] == {task: "0.0" if task in ("ai2d", "pope") else None}


def test_a_family_is_asked_with_its_own_prompts(root, tmp_path):
    model = Scripted(ANSWERS)
    suite(root, "mmstar", prompts="qwen3_vl").run(model, EVERY, tmp_path)
    text = model.asked["mmstar"][0][0][-1]["text"]
    assert text.startswith("Question: ")
    assert text.endswith("Answer with the option letter only.")


def test_other_prompts_than_the_family_s_are_refused(root):
    """lmms-eval's own command loads a task for the name it was given, which is no family's."""
    task = suite(root, "mmstar", prompts="harness").load("mmstar")
    check_prompts(task, "qwen2_5_vl")  # for which the task has none
    with pytest.raises(UserError, match=r"mmstar has prompts for qwen3_vl.*run it by python -m harness tasks=mmstar"):
        check_prompts(task, "qwen3_vl")
    check_prompts(suite(root, "mmstar", prompts="qwen3_vl").load("mmstar"), "qwen3_vl")


@pytest.mark.parametrize("limit", [3, 9])
def test_a_limit_that_parts_a_pair_of_mme_is_refused_before_the_model_runs(limit, root):
    with pytest.raises(UserError, match=f"its {limit} chosen questions split a pair"):
        suite(root, "mme").check(sample=QuestionSample(limit))
    suite(root, "mme").check(sample=QuestionSample(limit + 1))


def test_a_limit_under_which_mme_asks_nothing_that_the_tables_show_is_refused(tmp_path, monkeypatch):
    ordered = miniatures.write
    monkeypatch.setattr(miniatures, "write", lambda *args: ordered(*args[:3], args[3][8:] + args[3][:8]))
    miniatures.mme(tmp_path)
    with pytest.raises(UserError, match=r"its 4 chosen questions .* are not of perception: try limit=6"):
        suite(tmp_path, "mme").check(sample=QuestionSample(4))
    suite(tmp_path, "mme").check(sample=QuestionSample(6))


def test_a_missing_video_shows_before_the_model_runs(tmp_path):
    miniatures.videomme(tmp_path)
    (tmp_path / "Video-MME" / "data" / "clip3.mp4").unlink()
    with pytest.raises(UserError, match=r"cannot load task videomme: .*clip3\.mp4 does not exist"):
        suite(tmp_path, "videomme").check()
    suite(tmp_path, "videomme").check(sample=QuestionSample(9))  # the first three videos
