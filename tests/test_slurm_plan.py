"""What a submission consists of; no cluster is needed for it."""

from dataclasses import replace

import pytest

from harness.choices import register
from harness.cli import compose
from harness.config import validate
from harness.errors import UserError

slurm = pytest.importorskip("harness.slurm")


def sweep(*points: str):
    """(configuration, overrides) of every point, given as "method=random keep=0.5"."""
    return [(validate(compose("config", register(point.split()))), point.split()) for point in points]


def names(wanted) -> list[str]:
    return [plan.run.rpartition("/")[2] for _, plan in wanted]


def test_baselines_come_first_and_every_run_once():
    two = ["method=random keep=0.5", "method=random keep=0.5", "method=random tokens=9"]
    wanted = slurm.wanted_runs(sweep(*two, "method=uniform keep=0.5 model=pocket_llava tasks=pocket_image"))
    assert names(wanted) == ["none-1.0", "none-1.0", "random-0.5", "random-9tok", "uniform-0.5"]
    assert [plan.overrides for _, plan in wanted[:3]] == [[], [], two[0].split()]
    assert [config.model.name for config, _ in wanted[:2]] == ["pocket", "pocket_llava"]
    assert not any(config.pruned for config, _ in wanted[:2])
    assert len({plan.key for _, plan in wanted}) == 5


def test_a_baseline_of_the_sweep_itself_is_no_second_run():
    wanted = slurm.wanted_runs(sweep("method=random keep=0.5", "method=none"))
    assert names(wanted) == ["none-1.0", "random-0.5"]


def test_the_baseline_of_a_run_is_that_of_the_run_alone():
    """The job of a baseline finds the key that was planned, whatever its run's budget, seed and positions."""
    run = sweep("method=random tokens=9 seed=3 positions=compact model=pocket_llava tasks=pocket_image")
    (config, plan), _ = slurm.wanted_runs(run)
    assert slurm.wanted_runs([(config, [])])[0][1].key == plan.key


def test_a_gpu_that_the_login_node_lacks_is_no_mistake():
    ((config, _),) = run = sweep("method=none")
    elsewhere = replace(config, model=replace(config.model, device="cuda:7"))
    ((kept, plan),) = slurm.wanted_runs([(elsewhere, [])])
    assert kept.model.device == "cuda:7"
    assert plan.key == slurm.wanted_runs(run)[0][1].key


@pytest.mark.parametrize(
    ("points", "message"),
    [(["method=random force=true"], "move the run folders away"), (["runs=a", "runs=b"], "a sweep has one folder")],
)
def test_what_a_cluster_cannot_do_is_refused(points, message):
    with pytest.raises(UserError, match=message):
        slurm.check([config for config, _ in sweep(*points)])


def test_processes_of_a_run_share_a_node():
    with pytest.raises(UserError, match=r"nodes must be 1"):
        slurm.Launcher(nodes=2, tasks_per_node=1).launch([], 0)
