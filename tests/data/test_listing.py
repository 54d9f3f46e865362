"""What is said of data and weights: from task files, from cards that are read, and from nothing else."""

import json
import re
from pathlib import Path

import miniature_datasets as miniatures
import pytest
import yaml

from harness.core.config import SHIPPED, ModelConfig, TasksConfig, conf
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.core.task_index import lmms_eval_tasks
from harness.data import __main__ as command
from harness.data import cards, fetch, sources
from harness.data.sources import Source
from harness.evaluation import preflight

ROOT = Path(__file__).parents[2]
CARD = """---
license: [mit, apache-2.0]
dataset_info:
- config_name: one
  splits: [{name: test, num_examples: 7}]
  download_size: 100
- config_name: two
  splits: [{name: test, num_examples: 3}, {name: val, num_examples: 4}]
  download_size: 1234567
configs:
- config_name: one
  data_files: [{split: test, path: one/test-*}]
- config_name: two
  data_files: [{split: test, path: [two/a.parquet, "two/b*"]}, {split: val, path: two/val-*}]
---
Text --- with dashes.
"""
SIZES = {"README.md": 9, "one/test-0.parquet": 50, "one/test-1.parquet": 40, "two/a.parquet": 5, "two/b1.parquet": 6}
SIZES |= {"two/val-0.parquet": 3, "two/c.parquet": 1, "notes.txt": 2, "more/x.parquet": 1}


def of(*names: str) -> list[Source]:
    return list(sources.of_tasks(TasksConfig(metrics=dict.fromkeys(names))))


def source(*subsets: str, **more) -> Source:
    return Source("dataset", "t", "some/set", None, subsets, more.pop("split", "test"), **more)


def run(capsys, *overrides: str) -> tuple[str, dict]:
    cfg = compose("data", preflight.prepare(list(overrides)))
    command.check(cfg)
    command.main(cfg)
    *lines, last = capsys.readouterr().out.splitlines()
    return "\n".join(lines), json.loads(last)


def test_task_files_say_what_is_read():
    docvqa, mmbench, gqa, mvbench, videomme = of(
        "docvqa_val", "mmbench_cn_dev_static", "gqa", "mvbench", "videomme_w_subtitle"
    )
    assert (docvqa.repository, docvqa.subsets, docvqa.split) == ("lmms-lab-encoder/DocVQA", ("DocVQA",), "validation")
    assert (mmbench.subsets, mmbench.split, mmbench.rows) == (("cn",), "dev", False)
    assert gqa.subsets == ("testdev_balanced_instructions", "testdev_balanced_images")  # the second by its own code
    assert (mvbench.revision, len(mvbench.subsets), mvbench.archives) == ("video", 20, True)
    assert videomme.archives
    assert of("pocket_text") == [] if "pocket_text" in lmms_eval_tasks() else True


def test_every_task_of_a_suite_has_a_source():
    for file in conf("tasks").glob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        if content["include"] is None:
            assert [one.name for one in of(*content["metrics"])] == list(content["metrics"])


def test_a_local_model_has_no_source(tmp_path):
    assert sources.of_model(ModelConfig(name="m", pretrained=f"{SHIPPED}pocket/weights")) is None
    assert sources.of_model(ModelConfig(name="m", pretrained=str(tmp_path))) is None


def test_what_a_card_says_of_a_subset():
    card = cards.header(CARD, "it")
    found = cards.facts(card, source("two"), "page")
    assert (found.questions, found.size, found.licence) == (3, 1234567, "mit, apache-2.0")
    assert set(found.origins.values()) == {"page"}
    assert cards.facts(card, source("two", split="gone"), "page").questions is None
    assert cards.facts(card, source("two", archives=True), "page").size is None  # not of what lies in archives


@pytest.mark.parametrize("text", ["", "no header", "---\n[1, 2]\n---\n"])
def test_a_card_without_a_header_says_nothing(text):
    assert cards.facts(cards.header(text, "it"), source(), "page") == cards.Facts()


def test_a_damaged_card_is_one_line():
    with pytest.raises(UserError, match="the card of it cannot be read") as caught:
        cards.header("---\na: [1\n---\n", "it")
    assert "\n" not in str(caught.value)


def test_files_of_a_subset_with_one_of_each_split_of_the_first():
    card = cards.header(CARD, "it")
    about = {"README.md", "notes.txt"}
    one, two = {"one/test-0.parquet", "one/test-1.parquet"}, {"two/a.parquet", "two/b1.parquet", "two/val-0.parquet"}
    assert set(cards.chosen_files(card, [source("one")], SIZES)) == about | one
    assert set(cards.chosen_files(card, [source("two")], SIZES)) == about | two | {"one/test-1.parquet"}
    assert set(cards.chosen_files(card, [source("one"), source("two")], SIZES)) == about | one | two
    for everything in (source("three"), source(), source("two", archives=True)):
        assert cards.chosen_files(card, [everything], SIZES) == sorted(SIZES)
    assert cards.chosen_files({}, [source("two")], SIZES) == sorted(SIZES)


def test_each_known_number_has_its_page():
    entries = [entry for group in yaml.safe_load(cards.KNOWN.read_text()).values() for entry in group]
    assert all(re.match(r"https://(huggingface\.co|github\.com)/", entry["page"]) for entry in entries)
    assert all(set(entry) & {"questions", "size", "licence"} for entry in entries)


def test_without_the_hub_what_is_unknown_is_unknown(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    text, out = run(capsys, "tasks=[docvqa_val,scienceqa_img]", "model=qwen25vl7b", "hub=0")
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert re.search(r"DocVQA +validation +5349 +9.56 GB +apache-2.0 +no$", rows["docvqa_val"])
    assert re.search(r"ScienceQA-IMG +test +unknown +663 MB +unknown +no$", rows["scienceqa_img"])
    assert "hf download --repo-type dataset lmms-lab-encoder/DocVQA --local-dir /folder/lmms-lab-encoder/DocVQA" in text
    assert "hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir /folder/models/Qwen/Qwen2.5-VL-7B-Instruct" in text
    assert out["missing"] == ["docvqa_val", "scienceqa_img", "qwen25vl7b"]
    (docvqa, _, _) = out["sources"]
    assert docvqa["known_from"]["questions"] == "https://huggingface.co/datasets/lmms-lab/DocVQA/blob/main/README.md"


def test_the_copy_that_is_here_is_believed_first(capsys, tmp_path):
    miniatures.docvqa(tmp_path)
    card = tmp_path / "DocVQA" / "README.md"
    info = {"config_name": "DocVQA", "splits": [{"name": "validation", "num_examples": 12}]}
    content = yaml.safe_load(card.read_text().strip("-\n"))
    card.write_text(f"---\n{yaml.safe_dump({**content, 'dataset_info': [info]})}---\n")
    text, out = run(capsys, "tasks=docvqa_val", f"data_root={tmp_path}", "hub=0")
    (row,) = out["sources"]
    assert (row["questions"], row["here"]) == (12, str(tmp_path / "DocVQA"))
    assert row["known_from"]["questions"] == str(card)
    assert f"docvqa_val is in {tmp_path / 'DocVQA'}" in text
    assert "hf download" not in text


def test_what_ships_with_the_harness_is_said(capsys):
    text, out = run(capsys, "hub=0")
    assert "next to their task files: pocket_existence" in text
    assert "the model is in harness://pocket/weights" in text
    assert out == {"missing": [], "sources": []}


def test_no_network_is_said_once_and_the_rest_is_listed(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    text, out = run(capsys, "tasks=[chartqa,docvqa_val]", "hub=2")
    assert text.count("not asked of the Hub: cannot fetch dataset lmms-lab-encoder/ChartQA") == 1
    assert out["missing"] == ["chartqa", "docvqa_val"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["all=true", "to=x"], "name tasks= and model= to fetch"),
        (["md=x.md"], "add all=true"),
        (["hub=-1"], "hub must be a whole number of at least 0"),
        (["to=[a,b]"], "name one folder, as in to=data, got"),
        (["tasks=docvqa_val", "data_root=3"], "data_root must be a folder"),
        (["to=/dev/null/x"], "cannot be made"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, says, capsys):
    with pytest.raises(UserError, match=says):
        run(capsys, *overrides)


def test_nothing_to_fetch_is_said(capsys, tmp_path):
    with pytest.raises(UserError, match="nothing to fetch"):
        run(capsys, f"to={tmp_path}")


@pytest.mark.parametrize(("size", "words"), [(7, "7 B"), (1000, "1 kB"), (72_600_000, "72.6 MB"), (9.6e9, "9.6 GB")])
def test_sizes_as_the_hub_prints_them(size, words):
    assert fetch.in_words(int(size)) == words


def test_the_page_is_what_the_command_writes(capsys, tmp_path):
    run(capsys, "all=true", f"md={tmp_path / 'data.md'}")
    assert (tmp_path / "data.md").read_text() == (ROOT / "docs" / "data.md").read_text(), (
        "python -m harness.data all=true md=docs/data.md"
    )
