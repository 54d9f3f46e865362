"""Real benchmarks of lmms-eval on local data with several questions per picture, and their metrics by definition."""

import hashlib
import socket

import miniature_datasets as miniatures
import numpy as np
import pytest
from scripted_model import Scripted

from harness.core.config import TasksConfig
from harness.evaluation import datasets
from harness.evaluation.lmms_model import QuestionDigest
from harness.evaluation.task_suite import TaskSuite

TASKS = {  # the task -> the metric of the tables, the column with the right answer, a wrong answer
    "pope": ("pope_f1_score,none", "answer", "yes"),
    "mme": ("mme_perception_score,none", "answer", "maybe"),
    "mmbench_en_dev_static": ("gpt_eval_score,none", "answer", "E"),
    "mmbench_cn_dev_static": ("gpt_eval_score,none", "answer", "E"),
    "mmstar": ("average,none", "answer", "E"),
    "seedbench": ("seed_all,none", "answer", "E"),
    "ocrbench": ("ocrbench_accuracy,none", "answer", "tea"),
    "docvqa_val": ("anls,none", "answers", "ten"),
}
WRITERS = {"mmbench_en_dev_static": "mmbench", "mmbench_cn_dev_static": "mmbench", "docvqa_val": "docvqa"}


def several_a_picture(task, rows):
    """Return the rows of a miniature data set many times over, as other questions about fewer pictures."""
    more = []
    for turn in range(21 if task == "pope" else 12):
        for place, row in enumerate(rows):
            number = turn * len(rows) + place
            shown = miniatures.picture(number // 3)
            row = row | {"image": [shown] * len(row["image"]) if task == "seedbench" else shown}
            if task == "mmbench":  # both questions of one parity; all turns of a question show its picture
                index = row["index"] % 1_000_000
                row |= {"index": row["index"] + 10 * turn, "image": miniatures.picture(2 * turn + index % 2)}
            elif task == "mme":  # two pairs in one picture, of two categories
                row |= {"question_id": f"{turn}/{row['question_id']}", "image": miniatures.picture(number // 4)}
            more.append(row)
    return more


def write_several(root):
    """Write the data sets of `TASKS`, with several questions about each picture."""
    write = miniatures.write
    with pytest.MonkeyPatch.context() as patched:
        for name in {WRITERS.get(task, task) for task in TASKS}:

            def write_more(folder, split, columns, rows, config="", name=name):
                write(folder, split, columns, several_a_picture(name, rows), config)

            patched.setattr(miniatures, "write", write_more)
            getattr(miniatures, name)(root)


@pytest.fixture(scope="session")
def several(tmp_path_factory):
    """The folder of these data sets, and of Vinoground's."""
    root = tmp_path_factory.mktemp("several")
    write_several(root)
    miniatures.vinoground(root)
    return root


@pytest.fixture
def alone(tmp_path_factory, tmp_path, monkeypatch):
    """Caches and a working folder of its own, questions that no model has looked at, and no way out."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    cache.mkdir(exist_ok=True)
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(cache))
    monkeypatch.setattr(Scripted, "looked_at", {})
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def suite(root, task, metric=None):
    config = TasksConfig(name="several", metrics={task: metric})
    tasks = TaskSuite(config, data=datasets.local(config, str(root)))
    tasks.looked_at = Scripted.looked_at
    return tasks


def answers(root, task, seed):
    """Return answers of which the share of right ones differs between pictures; none is right for seed None."""
    _, column, wrong = TASKS[task]
    truth = [value if isinstance(value, str) else value[0] for value in suite(root, task).load(task).task_docs[column]]
    rng = np.random.default_rng(seed)
    luck = np.repeat(rng.choice([0.98, 0.6], len(truth)), 6)[: len(truth)]
    right = (rng.random(len(truth)) < luck) & (seed is not None)
    return {task: [answer if good else wrong for answer, good in zip(truth, right, strict=True)]}


def f1(rows, places):
    said = np.array([row["prediction"] == "yes" for row in rows])[places]
    true = np.array([row["ground_truth"] == "yes" for row in rows])[places]
    other = np.array([row["prediction"] == "no" for row in rows])[places]
    hits = (said & true).sum()
    precision, recall = hits / said.sum(), hits / (hits + (other & true).sum())
    return 2 * precision * recall / (precision + recall)


def pairs_of_mme(values):
    """Return points, category and picture of each pair of perception questions."""
    pairs = {}
    for row, picture in zip(values["mme_perception_score,none"], values["picture"], strict=True):
        if row is not None:
            pairs.setdefault((row["category"], row["question_id"], picture), []).append(row["score"])
    points = np.array([50 * sum(pair) + 100 * (sum(pair) == 2) for pair in pairs.values()])
    return points, np.array([category for category, _, _ in pairs]), [picture for _, _, picture in pairs]


def turns_of_mmbench(values):
    """Return for each question whether all its turns are right, in percent, and its picture."""
    turns = {}
    for row, picture in zip(values["gpt_eval_score,none"], values["picture"], strict=True):
        turns.setdefault((row["index"] % 1_000_000, picture), []).append(row["prediction"] == row["answer"])
    return np.array([100.0 * all(turn) for turn in turns.values()]), [picture for _, picture in turns]


def show_vinoground(docs):
    """Say what a question of Vinoground shows: a video of its own about text, one of two groups about videos."""
    for doc_id, index in enumerate(docs["index"]):
        number, side, kind = index.split("_")
        shown = f"{number}{side}" if kind == "text" else f"joined {int(number) // 2}"
        digest = hashlib.sha256(shown.encode()).hexdigest()
        Scripted.looked_at["vinoground", doc_id] = QuestionDigest(None, digest)


def groups_of_vinoground(values):
    """Return points for text and for videos of each pair of groups that share a video [250, 2, 2], and its pictures."""
    right, pictures = np.zeros((500, 2, 2)), {}
    for row, picture in zip(values["vinoground_score,none"], values["picture"], strict=True):
        number, side = row["index"].split("_")
        right[int(number), int(row["question_type"] == "video"), int(side == "neg")] = (
            row["pred"] == "AB"[side == "neg"]
        )
        pictures.setdefault(int(number) // 2, set()).add(picture)
    points = 100 * right.all(axis=2)
    return points.reshape(250, 2, 2), ["+".join(sorted(pictures[pair])) for pair in range(250)]
