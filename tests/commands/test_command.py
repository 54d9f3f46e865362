"""The command itself: mistakes are one line and quick, and nothing in the user's folder gets in its way."""

import os
import subprocess
import sys

import pytest

from harness.core import command
from harness.core.config import validate
from harness.core.errors import UserError

HEAVY = ("torch", "transformers", "lmms_eval", "datasets", "pandas")


def run(*args, cwd, **env):
    """`python -X importtime -m harness`; returns it with what it wrote to stderr and the modules it imported."""
    call = [sys.executable, "-X", "importtime", "-m", "harness", *args]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd.parent / "hf"), **env}
    done = subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = done.stderr.splitlines()
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    return done, [line for line in lines if not line.startswith("import time:")], imported


QUICK = {
    "help": (["--help"], None),
    "configuration": (["--cfg", "job"], None),
    "help of an unknown key": (["--help", "kep=0.5"], "did you mean keep?"),
    "configuration of an unknown key": (["--cfg", "job", "kep=0.5"], "did you mean keep?"),
    "unknown configuration": (["--config-name=nonsense"], "Cannot find primary config 'nonsense'"),
    "interval sweep": (["-m", "keep=interval(0.1,0.5)"], "cannot sweep keep=interval(0.1,0.5): list the values"),
    "glob sweep": (["-m", "method=glob(*)"], "cannot sweep method=glob(*): list the values"),
    "group of tasks": (["-m", "tasks=pope,mmbench"], "mmbench is a group of tasks"),
    "no task": (["tasks=[]"], "tasks=[] names no task"),
    "judge": (["tasks=mmbench_cn_dev"], "a judge over the network"),
    "limit": (["tasks=[pope,mme]", "limit=3"], "limit=3 must be even"),
    "unpruned with a budget": (["-m", "method=none,random", "keep=0.1"], "leave keep=0.1 out"),
    "runs below a file": (["runs=file/x"], "file is a file"),
    "launcher without a sweep": (["hydra/launcher=slurm"], "submits a sweep: add -m"),
    "another launcher": (["-m", "hydra/launcher=submitit_local"], "unknown hydra/launcher=submitit_local"),
    "last job of a sweep": (["-m", "method=idpruner", "method.lam=0.5,7", "model.dtype=float32,fp8"], "model.dtype"),
}


@pytest.mark.parametrize("name", QUICK)
def test_answers_before_anything_heavy_is_imported(name, empty):
    args, message = QUICK[name]
    (empty / "file").touch()
    done, stderr, imported = run(*args, cwd=empty, OPENAI_API_KEY="", AZURE_API_KEY="")
    assert "hydra" in imported
    assert not imported & set(HEAVY)
    assert done.returncode == (2 if message else 0)
    assert len(stderr) == (1 if message else 0)
    assert (message or "") in "".join(stderr)
    assert [path.name for path in empty.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("config", "override"),
    [("export", "out=''"), ("tables", "csv=''"), ("status", "runs=' '"), ("report", "out=''"), ("bench", "plots=''")],
)
def test_an_empty_text_is_no_folder(config, override, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", override])
    with pytest.raises(SystemExit) as stopped:
        command.command(config, lambda cfg: pytest.fail("it ran"))
    assert stopped.value.code == 2
    key = override.partition("=")[0]
    assert capsys.readouterr().err == f"error: {key} is an empty text, expected a value: pass one, or null for none\n"


@pytest.mark.parametrize("shadows", ["methods conf datasets", "methods/__init__.py conf/__init__.py torch/__init__.py"])
def test_folders_in_the_working_directory_hide_no_package(shadows, empty):
    for place in map(empty.joinpath, shadows.split()):
        (place.parent if place.suffix else place).mkdir()
        if place.suffix:
            place.write_text("raise AssertionError('the working directory came first')")
    done, stderr, _ = run("method=idpruner", "method.lam=7", cwd=empty)
    assert (done.returncode, len(stderr)) == (2, 1)
    assert "lam" in stderr[0]


def test_a_parameter_out_of_range_in_the_last_job_stops_the_sweep_before_the_first(empty):
    done, stderr, imported = run("-m", "method.lam=0.5,7", cwd=empty)
    assert done.returncode == 2
    assert len(stderr) == 1
    assert "lam" in stderr[0]
    assert "lmms_eval" not in imported
    assert list(empty.iterdir()) == []


def test_an_unknown_parameter_of_a_private_method_is_found_first(empty):
    (empty / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom methods.base import Method\n\n\n@dataclass(kw_only=True)\n"
        "class Mine(Method):\n    alpha: float = 1.0\n\n    def _select(self, tokens, k, generator):\n        ...\n"
    )
    done, stderr, imported = run("-m", "method=mine.py:Mine", "method.alhpa=1,2", cwd=empty)
    assert (done.returncode, len(stderr)) == (2, 1)
    assert "alhpa" in stderr[0]
    assert "lmms_eval" not in imported


def test_damaged_weights_are_named_before_anything_heavy_is_imported(empty):
    from tiny_models import tiny_folder

    folder = tiny_folder(empty.parent)
    os.truncate(folder / "model.safetensors", 600_000)
    done, stderr, imported = run(f"model.pretrained={folder}", cwd=empty)
    assert (done.returncode, len(stderr)) == (2, 1)
    assert "model.safetensors cannot be read" in stderr[0]
    assert not imported & set(HEAVY)


def test_a_cut_where_the_model_has_no_layer_is_refused_before_anything_is_loaded(empty):
    done, stderr, imported = run("-m", "method=fastv", "method.layer=0,40", cwd=empty)
    assert (done.returncode, len(stderr)) == (2, 1)
    assert "fastv cuts after decoder layer 40: this qwen2_5_vl has" in stderr[0]
    assert not imported & {"lmms_eval", "datasets", "harness.evaluation.runner"}
    assert list(empty.iterdir()) == []


def test_slurm_without_its_programs_is_refused(empty):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done, stderr, _ = run("-m", "hydra/launcher=slurm", cwd=empty, PATH="")
    assert (done.returncode, len(stderr)) == (2, 1)
    assert "needs sbatch" in stderr[0]


def test_only_runs_are_submitted():
    with pytest.raises(UserError, match="is for python -m harness"):
        command._check_launcher(command.parse(["hydra/launcher=slurm"]), True, False)


def test_a_check_sees_every_job_before_the_next_check_starts(monkeypatch):
    seen = []
    checks = [lambda cfg, name=name: seen.append((name, cfg.seed)) for name in ("quick", "slow")]
    command._checked_jobs("config", ["seed=1,2"], True, checks)
    assert seen == [("quick", 1), ("quick", 2), ("slow", 1), ("slow", 2)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=99999999999999999999", "seed must lie"),
        ("seed=-1", "seed must lie"),
        ("model.max_pixels=783", "model.m.._pixels"),
        ("model.device=cuda:x", "model.device must be"),
        ("model.device=cpux", "model.device must be"),
    ],
)
def test_values_that_would_fail_later_are_refused(override, message):
    overrides = [override, *(["model.min_pixels=100"] if "max_pixels" in override else [])]
    with pytest.raises(UserError, match=message):
        validate(command.compose("config", overrides))


def test_the_unpruned_model_takes_no_budget():
    assert validate(command.compose("config", ["method=none"])).budget.label == "1.0"
    assert validate(command.compose("config", ["method=none", "keep=1.0"])).budget.label == "1.0"
    for budget in ("keep=0.25", "tokens=9"):
        with pytest.raises(UserError, match=f"leave {budget} out"):
            validate(command.compose("config", ["method=none", budget]))


def test_weights_of_the_users_own_are_called_by_their_folder(tmp_path):
    from harness.evaluation.preflight import prepare

    def name(*overrides):
        return command.compose("config", prepare(list(overrides))).model.name

    own = f"model.pretrained={tmp_path / 'my-weights'}"
    assert name() == "pocket"
    assert name(own) == name(f"{own}/") == "my-weights"
    assert name(own, "model=qwen25vl7b") == "qwen25vl7b"
    assert name(own, "model.name=mine") == "mine"


def test_an_interrupted_command_says_so_in_one_line(monkeypatch, capsys):
    def interrupt(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["harness.status"])
    with pytest.raises(SystemExit) as stopped:
        command.command("status", interrupt)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"
