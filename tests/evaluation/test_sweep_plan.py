"""What a submission consists of; no cluster is needed for it."""

from dataclasses import replace

import pytest
from composed_sweeps import composed
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from harness.core.config_groups import register
from harness.core.errors import UserError
from harness.core.overrides import parse
from harness.evaluation.preflight import locate
from harness.evaluation.sweep_plan import shared

slurm = pytest.importorskip("harness.evaluation.slurm")


def sweep(*points: str):
    """(located run, overrides) of every point, given as "method=random keep=0.5"."""
    return [(locate(composed(*point.split())), point.split()) for point in points]


def names(wanted) -> list[str]:
    return [plan.run.rpartition("/")[2] for _, plan in wanted]


def test_baselines_come_first_and_every_run_once():
    two = ["method=random keep=0.5", "method=random keep=0.5", "method=random tokens=9"]
    wanted = slurm.wanted_runs(sweep(*two, "method=uniform keep=0.5 model=pocket_llava tasks=pocket_image"))
    assert names(wanted) == ["none-1.0", "none-1.0", "random-0.5", "random-9tok", "uniform-0.5"]
    assert [plan.overrides for _, plan in wanted[:3]] == [[], [], two[0].split()]
    assert [run.config.model.name for run, _ in wanted[:2]] == ["pocket", "pocket_llava"]
    assert not any(run.config.pruned for run, _ in wanted[:2])
    assert len({plan.key for _, plan in wanted}) == 5


def test_a_baseline_of_the_sweep_itself_is_no_second_run():
    wanted = slurm.wanted_runs(sweep("method=random keep=0.5", "method=none"))
    assert names(wanted) == ["none-1.0", "random-0.5"]


def test_the_baseline_of_a_run_is_that_of_the_run_alone():
    """The job of a baseline finds the key that was planned, whatever its run's budget, seed and positions."""
    run = sweep("method=random tokens=9 seed=3 positions=compact model=pocket_llava tasks=pocket_image")
    (baseline, plan), _ = slurm.wanted_runs(run)
    assert slurm.wanted_runs([(baseline, [])])[0][1].key == plan.key


def test_a_gpu_that_the_login_node_lacks_is_no_mistake():
    ((located, _),) = run = sweep("method=none")
    config = replace(located.config, model=replace(located.config.model, device="cuda:7"))
    ((kept, plan),) = slurm.wanted_runs([(replace(located, config=config), [])])
    assert kept.config.model.device == "cuda:7"
    assert plan.key == slurm.wanted_runs(run)[0][1].key


@pytest.mark.parametrize(
    ("points", "params", "message"),
    [
        (["method=random force=true"], {}, "move their folders away"),
        (["runs=a", "runs=b"], {}, "a sweep has one folder"),
        (["method=random"], {"nodes": 2}, "nodes must be 1"),
        (["method=random"], {"tasks_per_node": 5}, "tasks_per_node=5 on gpus_per_node=4"),
        (["method=random", "model.device_map=auto"], {"tasks_per_node": 2}, "set hydra.launcher.tasks_per_node=1"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(points, params, message):
    usual = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 4}
    configs = [run.config for run, _ in sweep(*points)]
    with pytest.raises(UserError, match=message):
        slurm.check(configs, usual | params)


def test_processes_may_be_more_than_gpus_where_there_are_none():
    slurm.check([], {"nodes": 1, "tasks_per_node": 2, "gpus_per_node": None})


def test_overrides_can_be_typed_again(tmp_path, monkeypatch):
    """Methods with parameters, private ones and lists of tasks have other names while Hydra handles them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").touch()
    given = [
        "method={name:fastv,variant:paper},idpruner,a.py:Mine",
        "tasks=[pocket_text,pocket_video]",
        "keep=0.5,0.25",
    ]
    renamed = [["seed=1", *point] for point in sweep_points(given)]
    assert any("fastv-variant-paper" in text for point in renamed for text in point)
    common, own = shared(renamed)
    assert common == ["seed=1", "tasks=[pocket_text,pocket_video]"]
    assert own[0] == ["method={name:fastv,variant:paper}", "keep=0.5"]
    assert own[3] == ["method=idpruner", "keep=0.25"]
    assert own[4] == ["method=a.py:Mine", "keep=0.5"]


def sweep_points(overrides):
    return BasicSweeper.split_arguments(parse(register(overrides)), None)[0]
