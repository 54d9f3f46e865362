"""The experiments are the published tables: the same cells, in jobs that pass every check that needs no weights."""

import csv
import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml
from composed_sweeps import jobs
from fork_server import completed
from last_line import report_of

import methods
from harness.bench.settings import settings
from harness.core import command
from harness.core.config_groups import check_tasks
from harness.core.errors import UserError
from harness.evaluation.preflight import check_scoring
from harness.models import adapter_class
from harness.results.formats import markdown
from harness.results.result import collect
from harness.tables import of_runs
from methods.base import Cut

ROOT = Path(__file__).parents[2]
TABLES = (1, 2, 3, 5, 6, 7)  # table 4 is latency, which python -m harness.bench measures
FAMILY = {
    "qwen25vl7b": "qwen2_5_vl",
    "qwen25vl3b": "qwen2_5_vl",
    "llava15_7b": "llava",
    "llavaov15_8b": "llavaonevision1_5",
}


def published(table):
    facts = yaml.safe_load((ROOT / "conf" / "tables" / "paper.yaml").read_text())
    with (ROOT / "results" / "paper" / "published_scores.csv").open() as stream:
        for row in csv.DictReader(stream):
            if row["table"] == str(table):
                method = facts["methods"].get(row["method"], row["method"])
                kind, _, number = row["budget"].partition("=")
                budget = (kind, float(number)) if kind else None
                lam = float(row["lambda"]) if row["lambda"] else None
                yield row["model"], method, budget, lam, row["benchmark"]


def cells(table):
    facts = yaml.safe_load((ROOT / "conf" / "tables" / "paper.yaml").read_text())
    benchmark = {task: name for name, about in facts["benchmarks"].items() for task in about["tasks"]}
    for job in jobs(f"experiment=table{table}"):
        budget = ("tokens", job.tokens) if job.tokens else ("keep", job.keep)
        lam = job.params.get("lam") if table == 7 else None  # elsewhere IDPruner has the one that it has by default
        for task in job.tasks.metrics:
            yield job.model.name, job.method["name"], budget, lam, benchmark[task]


@pytest.mark.parametrize("table", TABLES)
def test_an_experiment_has_the_cells_of_its_table_each_once(table):
    ours = Counter(cells(table))
    # The unpruned model is run with the first job of a sweep, which needs it.
    baseline = {(model, "baseline", None, None, benchmark) for model, _, _, _, benchmark in ours}
    assert {*ours, *baseline} == set(published(table))
    assert set(ours.values()) == {1}


@pytest.mark.parametrize("table", TABLES)
def test_every_job_of_an_experiment_passes_the_checks_that_need_no_weights(table, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("AZURE_API_KEY", raising=False)
    for job in jobs(f"experiment=table{table}"):
        check_tasks(job.tasks)
        check_scoring(job.tasks, job.question_sample)
        method = methods.load(job.method["name"], **job.params)
        family = adapter_class(FAMILY[job.model.name])
        assert family.refusal(method) is None
        family.check_positions(job.positions, method)
        kinds = {"video"} if table == 3 else {"image"}
        assert kinds <= family.media
        assert job.params.get("variant", "paper") == "paper"
        assert job.limit is None


FIELD = {"llava15_field": ("llava", {192, 128, 64}), "llava_next": ("llava_next", {640, 320, 160})}


@pytest.mark.parametrize("experiment", FIELD)
def test_the_experiments_of_the_field_compare_equal_computation(experiment, monkeypatch):
    """Each method cuts so that a decoder layer of 32 sees the budget on average, but for rounding."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    family, budgets = FIELD[experiment]
    swept = jobs(f"experiment={experiment}")
    assert {job.tokens for job in swept} == budgets
    for job in swept:
        check_tasks(job.tasks)
        check_scoring(job.tasks, job.question_sample)
        method, n = methods.load(job.method["name"], **job.params), 2880 if family == "llava_next" else 576
        assert adapter_class(family).refusal(method) is None
        before, total = (0, n), 0
        for cut in (*method.cuts(n, job.tokens, 32), Cut(31, 0)):
            total += (cut.layer + 1 - before[0]) * before[1]
            before = cut.layer + 1, cut.k
        assert abs(total / 32 - job.tokens) < 1


def test_the_progressive_methods_are_swept_at_both_budgets():
    swept = jobs("experiment=progressive")
    assert len(swept) == 2 * 9
    pairs = {(job.method["name"], job.params["budget_at"]) for job in swept if "budget_at" in job.params}
    assert pairs == {(name, at) for name in ("pyramiddrop", "sparsevlm", "fastv") for at in ("mean", "end")}


def test_grounding_compares_positions_kinds_of_methods_and_the_prior():
    kept, compact = jobs("experiment=grounding"), jobs("experiment=grounding_compact")
    family = adapter_class("llava")
    for job in (*kept, *compact):
        check_tasks(job.tasks)
        check_scoring(job.tasks, job.question_sample)
        method = methods.load(job.method["name"], **job.params)
        assert family.refusal(method) is None
        family.check_positions(job.positions, method)
    assert {(job.model.name, job.tasks.name, job.runs) for job in (*kept, *compact)} == {
        ("llava15_7b", "grounding", "results/analysis/grounding")
    }
    cells = [{(job.method["name"], job.keep) for job in swept} for swept in (kept, compact)]
    assert cells[0] - cells[1] == {("d2pruner", 0.25), ("d2pruner", 0.1)}
    assert {job.positions for job in kept} == {"keep"}
    assert {job.positions for job in compact} == {"compact"}
    ours = [job.params for job in kept if job.method["name"] == "d2pruner"]
    assert {(params["alpha"], params["prior"]) for params in ours} == {(0.5, None), (0.5, "none")}


def test_what_the_comparison_did_otherwise_on_one_model_stays_there():
    for table, row in ((1, "grid"), (6, "sqrt")):
        swept = jobs(f"experiment=table{table}")
        assert {job.params["row"] for job in swept if job.method["name"] == "hiprune"} == {row}


def test_the_command_line_has_the_last_word():
    some = jobs("experiment=table1", "method=random,idpruner", "keep=0.5", "model=pocket", "tasks=pocket", "limit=2")
    assert [job.method["name"] for job in some] == ["random", "idpruner"]
    assert {(job.keep, job.model.name, job.tasks.name, job.limit) for job in some} == {(0.5, "pocket", "pocket", 2)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=table1,table2"], "one experiment at a time"),
        (["experiment=table1", "experiment=table2"], "one experiment at a time"),
        (["experiment=tabel7"], "unknown experiment=tabel7: did you mean table7"),
        (["experiment=table4"], "experiment=table4 is for python -m harness.bench"),
        (["method={variant: paper}"], "has no name"),
        (["method={name: fastw, variant: paper}"], "did you mean fastv"),
    ],
)
def test_a_mistake_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        jobs(*overrides)
    assert "\n" not in str(caught.value)


def test_an_experiment_without_a_sweep_is_refused():
    with pytest.raises(UserError, match="experiment=table1 is a sweep: add -m"):
        command._experiment("config", ["experiment=table1"], False, False)
    assert command._experiment("config", ["experiment=table1"], False, True) == ["experiment=table1"]  # only shown


def test_latency_is_measured_of_the_methods_of_table_4():
    overrides = command._experiment("bench", ["experiment=table4"], False, False)
    chosen = settings(command.compose("bench", overrides))
    assert [run.method["name"] for run in chosen.runs] == ["vispruner", "scope", "idpruner"]  # and the unpruned model
    assert {run.params.get("variant", "paper") for run in chosen.runs} == {"paper"}
    assert {(run.model.name, run.keep) for run in chosen.runs} == {("qwen25vl7b", 0.25)}
    with pytest.raises(UserError, match=r"experiment=table1 is for python -m harness$"):
        command._experiment("bench", ["experiment=table1"], True, False)


@pytest.mark.parametrize("value", ["{name: idpruner, lam: 0.3}", "{name: 'idpruner', lam: 0.3}"])
def test_a_method_may_bring_its_parameters_into_a_sweep(value):
    first, second = jobs(f"method={value},random")
    assert (first.method["name"], first.params["lam"], first.params["parallel_k"]) == ("idpruner", 0.3, 1)
    assert second.method["name"] == "random"


def test_a_private_method_may_bring_its_parameters(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("")
    (job,) = jobs(f"method={{name: '{file}:Mine', alpha: 3}}")
    assert job.method == {"name": f"{file}:Mine", "alpha": 3}


BROKEN = """
from methods.base import Method


class Broken(Method):
    def _select(self, tokens, k, generator):
        raise ValueError("broken on purpose")
"""


@pytest.mark.usefixtures("fork_server")
def test_an_experiment_runs_on_the_embedded_model(tmp_path):
    call = ["harness", "-m", "experiment=table7", "model=pocket", "tasks=pocket_existence", "limit=2"]
    methods = "method=dpp,{name: hybrid, lam: 0.1},{name: idpruner, lam: 0.9}"

    def run(*more, code=0):
        done = completed(tmp_path, *call, *more)
        assert done.returncode == code, done.stderr[-2000:]
        return done, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    done, (*reports, ended) = run(methods)
    assert ended == {"finished": 3, "failed": [], "runs": ["results/runs"]}
    table = "\n".join(map(markdown, of_runs(collect(tmp_path / "results" / "runs"))[0]))
    assert f"\n{table}\npython -m harness.report runs=results/runs out=report.html\n" in done.stdout
    shown = r"\S+: (0 of 2 questions|2 of 2 questions in \d+ s)"
    assert [line for line in done.stderr.splitlines() if not re.fullmatch(shown, line)] == []
    assert [report["method"] for report in reports] == ["dpp", "hybrid", "idpruner"]
    lams = [json.loads((tmp_path / r["run"] / "run.json").read_text())["config"]["method"].get("lam") for r in reports]
    assert lams == [None, 0.1, 0.9]
    assert len(list(tmp_path.rglob("DONE"))) == 4

    files = sorted(tmp_path.rglob("*"))
    done, (listed,) = run(f"{methods},random", "dry_run=true")
    assert [row["state"] for row in listed["runs"]] == ["done"] * 4 + ["to do"]
    assert [f"results/runs/{row['run']}" for row in listed["runs"][1:4]] == [report["run"] for report in reports]
    assert listed["tflops_per_question"] == listed["runs"][-1]["tflops"] > 0
    assert listed["hours"] >= 0
    assert re.search(
        r"^\d+ s for all of them on \S+, at the speed of pocket/pocket_existence/", done.stdout, re.MULTILINE
    )
    assert sorted(tmp_path.rglob("*")) == files

    (tmp_path / "broken.py").write_text(BROKEN)
    done, (*again, ended) = run(f"{methods},broken.py:Broken", code=1)
    assert again == reports
    assert ended == {"finished": 3, "failed": ["method=broken.py:Broken"], "runs": ["results/runs"]}
    assert f"\n{table}\nfailed: method=broken.py:Broken\npython -m harness.report " in done.stdout


def test_the_sweep_of_what_was_tried_beside_idpruner_lists_its_runs(python):
    call = [ROOT / "scripts" / "beyond.sh", "tokens=14", "keep=null", "dry_run=true"]
    done = subprocess.run(call, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True, check=True)
    runs = report_of(done.stdout)["runs"]
    assert Counter(run["run"].split("/")[-1].split("-")[0] for run in runs) == {
        "none": 1,
        "cdpruner": 1,
        "dpp": 1,
        "idpruner": 4,
        "qmmr": 11,
        "variants.py": 9,
    }
