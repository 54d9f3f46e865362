"""What the pages of docs/ show is what happens: every command is run, in order, in a folder of the page's own."""

import json
import re
import shlex
import sys
import tomllib
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import miniature_datasets as miniatures
import pandas as pd
import pytest
import torch
import yaml
from conversations import write_conversations
from doc_guides import PAGES, ROOT, Page, Reader
from fork_server import Forks
from last_line import report_of
from run_folders import make_run
from tiny_models import HIDDEN, tiny_folder

import harness.pocket.train as pocket_train
import methods
from harness import __main__ as main_job
from harness.core import command as cli
from harness.core.config import ModelConfig
from harness.models.scorer import VisionSelectorScorer, save_scorer
from harness.pocket.recipe import stages
from methods.base import Tokens
from methods.samples import make_tokens

# Commands that are read, not run: they take hours, real weights, or, as versions.md, environments of several gigabytes.
READ = ("pocket.md", "photo.md", "results.md", "speed.md", "models.md", "methods.md", "runs.md", "install.md")
READ = (*READ, "rehearsal.md")
GUIDES = sorted(set(PAGES) - {*READ, "versions.md", "five-minutes.md"})  # test_five_minutes.py types that session
# What takes hours is only listed. What is then submitted to a cluster, test_slurm.py runs on one.
MORE = {
    "python -m harness -m method=my_pruner.py:MyPruner": ["dry_run=true"],
    "python -m harness -m experiment=grounding model=pocket_clip": ["method=random", "keep=0.25", "limit=4"],
    "python -m harness -m model=pocket_llava tasks=pocket_image method=visionzip,divprune": ["limit=2"],
    "python scripts/coverage.py": ["--worlds", "2"],
    "python scripts/selection_costs.py": ["64"],
    "python scripts/video_memory.py": ["--small", "--frames", "4"],
    "PARTITION=gpu ACCOUNT=lab scripts/submit.sh": ["dry_run=true"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What pages call /path/to/NAME: a tiny model of random weights, a scorer that fits it, data in a real form."""
    root = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    save_scorer(VisionSelectorScorer(HIDDEN, 16, init_scale=0.3), root / "selector")
    miniatures.pope(root / "data")
    found = {"weights": tiny_folder(root), "selector": root / "selector", "data": root / "data"}
    found |= {"conversations.json": write_conversations(root / "media", 12), "media": root / "media"}
    return {f"/path/to/{name}": str(place) for name, place in sorted(found.items(), reverse=True)}


@pytest.fixture(scope="module")
def read(tmp_path_factory, python, given):
    """A page's name -> a reader who has worked through it, once."""

    @cache
    def work_through(name: str) -> Reader:
        folder = tmp_path_factory.mktemp(Path(name).stem)
        (folder / "results").mkdir()
        for place in ("scripts", "results/paper", "results/pocket"):  # of the clone that a page is read in
            (folder / place).symlink_to(ROOT / place)
        if name == "cluster.md":
            come_back_from_the_cluster(folder / "results" / "runs" / "qwen25vl7b" / "paper_image")
        forks = Forks(folder, tmp_path_factory.mktemp("said"))
        return Reader(PAGES[name], folder, forks, python, given, MORE).work_through()

    return work_through


def come_back_from_the_cluster(place):
    """Two runs of table 1, of one of its benchmarks."""
    metric = "exact_match,flexible-extract"
    for method, score in (("none", 0.83), ("idpruner", 0.80)):
        found = {"each": {"ai2d": {metric: [1.0]}}, "scores": {"ai2d": {metric: score}}, "metric": metric}
        make_run(place, method, model="qwen25vl7b", **found)


@pytest.mark.parametrize("name", GUIDES)
def test_every_command_of_a_page_runs(name, read):
    assert len(read(name).said) == len(PAGES[name].commands)


def test_commands_stand_where_they_are_found():
    """In fences, not within a line, where nobody would run them."""
    typed = re.compile(r"(\. |python|torchrun|accelerate|make|pip|sbatch|git|scripts/\S+|hf) \S")
    hidden = {name: [span for span in PAGES[name].spans if typed.match(span)] for name in GUIDES}
    assert hidden == {name: [] for name in GUIDES}


FRONT = Page("../README.md")


@pytest.mark.parametrize("page", [FRONT, *map(PAGES.get, READ)], ids=lambda page: page.name)
def test_commands_that_are_only_read_can_be_typed(page, monkeypatch):
    """Modules and scripts exist, and what the main job, training and the prior are given composes."""
    reached = []
    for family in ("Pocket", "LlavaPocket", "ClipPocket"):
        monkeypatch.setattr(stages, family, lambda *given: reached.append(given) or sys.exit())
    for command in page.commands:
        words = [word for word in shlex.split(command, comments=True) if not re.match("[A-Z_]+=", word)]
        tool, *rest = words
        if tool.startswith("scripts/"):
            assert (ROOT / tool).exists(), command
        elif tool not in ("make", "pip", "export", "hf"):
            assert tool in ("python", "torchrun"), command
            check_call(rest[rest.index("-m") + 1 :] if "-m" in rest else rest, monkeypatch, reached)


def check_call(words, monkeypatch, reached):
    module, *arguments = words
    if module.endswith(".py"):
        assert (ROOT / module).exists()
    elif module == pocket_train.__name__:
        before = len(reached)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit, match=r"^$"):
            pocket_train.main()
        assert len(reached) == before + 1
    elif module in ("harness", "harness.train", "harness.d2prior"):
        # Of a sweep, the first choice of each argument.
        arguments = [re.sub(r"^(\w+=[^[,]*),.*", r"\1", word) for word in arguments if word != "-m"]
        arguments = [word for word in arguments if not word.startswith(("experiment=table", "method=norm.py"))]
        cli.compose(module.removeprefix("harness").strip(".") or "config", main_job.prepare(arguments))
    else:
        assert find_spec(module)


@pytest.mark.parametrize("page", [FRONT, *PAGES.values()], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    place = (ROOT / "docs" / page.name).resolve()
    for link in page.links:
        file, _, part = link.partition("#")
        found = (place.parent / file).resolve() if file else place
        assert found.exists(), link
        heads = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if part else []
        assert part in ["", *(re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads)], link


def test_the_index_has_every_page():
    index = [link for link in PAGES["README.md"].links if "/" not in link]
    assert sorted([*index, "README.md"]) == sorted(PAGES)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("rm -r results", "a command that no test can run: rm -r results"),
        ("python -m harness.tables runs=results/*-0.5", "nothing is called runs="),
        ("python -m harness.tables runs=nowhere", "error: no finished run below runs=nowhere"),
    ],
)
def test_a_page_whose_command_fails_is_noticed(command, why, tmp_path, python):
    page = Page("a.md")
    vars(page)["text"] = f"# A page\n\n```\n{command}\n```\n"
    with pytest.raises(AssertionError, match=re.escape(why)):
        Reader(page, tmp_path, Forks(tmp_path, tmp_path), python, {}).work_through()


@pytest.mark.parametrize("name", GUIDES)
def test_files_and_options_that_are_named_exist(name):
    keys = {str(key) for file in (ROOT / "conf").glob("*.yaml") for key in yaml.safe_load(file.read_text()) or {}}
    keys |= {f"model.{field.name}" for field in fields(ModelConfig)}
    for file in (ROOT / "conf" / "method").glob("*.yaml"):
        keys |= {f"method.{key}" for key in yaml.safe_load(file.read_text())}
    keys |= {"model", "method", "tasks", "experiment", "hydra.launcher.qos"}
    for span in chain.from_iterable(text.split() for text in PAGES[name].spans):
        if re.fullmatch(r"(harness|methods|conf|scripts|tests)/[\w./]+", span) and "NAME" not in span:
            assert (ROOT / span).exists(), span
        if option := re.fullmatch(r"([a-z_.]+)=(?!True)[\w./:,\[\]-]+", span):
            assert option[1] in keys, span


class TestFirstRun:
    def test_what_is_shown_is_what_comes_out(self, read):
        made, run = read("first-run.md").said[:2]
        assert "-m harness" in made.out  # of make, which only says what it would do
        ((_, shown),) = [block for block in PAGES["first-run.md"].blocks if block[0] == "text"]
        form = {re.sub(r"\d", "0", line) for line in run.out.splitlines()}
        assert {re.sub(r"\d", "0", line) for line in shown.splitlines()} - form == {"..."}

    def test_what_was_run_is_not_run_again(self, read):
        _, run, sweep, *_ = read("first-run.md").said
        assert [report["method"] for report in sweep.runs] == ["random", "idpruner"]
        assert sweep.report == {"finished": 2, "failed": [], "runs": ["results/look"]}
        assert run.report["run"] == sweep.runs[1]["run"]
        assert "random-0.25: 0 of" in sweep.err
        assert "idpruner-0.25" not in sweep.err

    def test_the_other_commands_speak_of_those_runs(self, read):
        reader = read("first-run.md")
        _, run, _, compared, tables, real, script = reader.said
        assert compared.report["a"] == run.report["run"]
        assert tables.report["runs"] == 3
        assert all((reader.folder / file).is_file() for file in tables.report["files"])
        assert list(real.report["scores"]) == ["pope"]
        assert re.search(r"idpruner 16 of 64\ndivprune 16 of 64\nin common: \d+", script.out)


class TestAddAMethod:
    def test_it_takes_twenty_lines(self):
        code = [line for line in PAGES["add-a-method.md"].files["my_pruner.py"].splitlines()[1:] if line.strip()]
        assert len(code) <= 20

    def test_its_page_in_the_list(self, read):
        said = read("add-a-method.md").said[0]
        assert "score_i = || x_i - share * mean(x) ||" in said.out
        (found,) = said.report["methods"]
        assert (found["params"], set(found["families"].values())) == ({"share": 1.0}, {None})

    def test_its_sweep(self, read):
        runs = read("add-a-method.md").said[1].report["runs"]
        points = [[f"method.share={share}", f"keep={keep}"] for share in (0, 1) for keep in (0.25, 0.1)]
        assert [row["overrides"][-2:] for row in runs[1:]] == points

    def test_its_run_on_the_embedded_model(self, read):
        reader = read("add-a-method.md")
        lines = (reader.folder / reader.said[2].report["run"] / "kept.jsonl").read_text().splitlines()
        assert [json.loads(line)["k"] == round(json.loads(line)["n"] / 4) for line in lines] == [True, True]

    def test_its_contract(self, read):
        assert "1 passed" in read("add-a-method.md").said[3].out

    def test_what_mistakes_say(self, tmp_path, monkeypatch):
        page = PAGES["add-a-method.md"]
        monkeypatch.chdir(tmp_path)
        mistakes = {
            "@dataclass(kw_only=True)": "",
            "tokens.features.double()": "tokens.importance[:, None]",
            "top(scores, k)": "top(scores, k).tolist()",
            "Selection.of(top(scores, k))": "Selection.of(top(scores / (scores - scores), k))",
        }
        said = []
        for right, wrong in mistakes.items():
            Path("my_pruner.py").write_text(page.files["my_pruner.py"].replace(right, wrong))
            with pytest.raises(ValueError, match=r".+") as caught:
                methods.load("my_pruner.py:MyPruner").select(make_tokens(40, features="equal"), 10)
            said.append(str(caught.value))
        (shown,) = [text for kind, text in page.blocks if kind == "text"]
        assert shown.splitlines() == said

    def test_its_entry_point(self, read, tmp_path, monkeypatch):
        page = PAGES["add-a-method.md"]
        (tmp_path / "my_pruner.py").write_text(page.files["my_pruner.py"])
        (text,) = [text for kind, text in page.blocks if kind == "toml"]
        points = tomllib.loads(text)["project"]["entry-points"]
        info = tmp_path / "theirs-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        lines = [line for group, names in points.items() for line in (f"[{group}]", *map(" = ".join, names.items()))]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "my_pruner", raising=False)
        tokens = Tokens(torch.tensor([[1.0], [1.0], [9.0], [2.0]]), [(1, 2, 2)])
        assert methods.load("my_pruner", share=1.0).select(tokens, 2).kept.tolist() == [0, 2]
        assert methods.load("my_pruner", share=0.0).select(tokens, 2).kept.tolist() == [2, 3]


def test_a_family_that_is_added_runs_every_method(read):
    passed = re.search(r"(\d+) passed", read("add-a-model.md").said[0].out)
    assert int(passed[1]) == len(set(methods.BUILT_IN) - {"none", "resize"}) + 2


def test_a_cluster(read):
    reader = read("cluster.md")
    listed, submitted, status, _, gathered, _ = reader.said
    assert not (reader.folder / "results" / "runs" / ".sweeps").exists()  # of a sweep that was only listed
    beside = pd.read_csv(reader.folder / "beside.csv")
    assert len(listed.report["runs"]) == len(report_of(submitted.err)["runs"]) == 1 + 9 * 2
    assert status.report["counts"] == {"done": 2}
    assert gathered.report["runs"] == 2 + 2  # with what torchrun ran
    assert set(beside.loc[beside["source"] == "ours", "ai2d"]) == {83.0, 80.0}


def test_a_report(read):
    reader = read("read-the-report.md")
    assert reader.said[-1].report["runs"] == 4
    page = (reader.folder / "report.html").read_text()
    for part in (
        "Score against measured prefill time",
        "only where A is right and B is wrong",
        "per layer",
        "lost / gained",
    ):
        assert part in page


def test_a_scorer(read):
    reader = read("train-a-scorer.md")
    trained, used, compared, real = reader.said
    assert (trained.report["step"], trained.report["scorer"]) == (3, "results/scorers/look/scorer")
    assert used.runs[-1]["method"] == "hiprune"
    assert list(compared.report["tasks"]) == ["pocket_text", "avg"]
    assert real.report["scorer"] == "results/scorers/mine/scorer"
