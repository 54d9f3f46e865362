"""Every configuration composes, and every mistake is one line with exit code 2 that leaves nothing behind."""

import os
import re
import runpy
import socket
import subprocess
import sys
import time
from dataclasses import fields
from itertools import cycle
from typing import get_args

import pytest
import yaml
from composed_sweeps import composed

import methods
from harness.core.config import conf, validate
from harness.core.config_groups import check_tasks, register
from harness.core.errors import UserError
from harness.core.help import described
from harness.core.overrides import compose
from harness.core.rules import at_least, between, one_of, optional, require
from harness.evaluation.pruner import checked_method
from harness.models.model_folder import ModelFolder
from harness.pocket import WEIGHTS
from methods.checks import hint

CONF = conf()
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
INDEX = "model.safetensors.index.json"
TASKS = sorted(path.stem for path in (CONF / "tasks").glob("*.yaml"))


def run_main(*args, cwd, early_torch="raise AssertionError('imported before the configuration was checked')", **env):
    """`python -m harness` in an empty folder, with a torch and a transformers that must not be imported."""
    poison = cwd.parent / "poison"
    for name in ("torch", "transformers"):
        (poison / name).mkdir(parents=True, exist_ok=True)
        (poison / name / "__init__.py").write_text(early_torch)
    environment = {**os.environ, "PYTHONPATH": str(poison), **env}
    call = [sys.executable, "-m", "harness", *args]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


# Hydra reads a method's file and a model's one each into its own group: every file once will do.
@pytest.mark.parametrize(("method", "model"), zip(METHODS, cycle(MODELS), strict=False))
def test_every_method_and_model_composes(method, model):
    assert len(METHODS) >= len(MODELS)
    run = composed(f"method={method}", f"model={model}")
    assert run.method["name"] == method
    assert run.model.name == model


@pytest.mark.parametrize("tasks", TASKS)
def test_every_suite_composes_and_its_tasks_exist(tasks):
    run = composed(f"tasks={tasks}")
    assert run.tasks.name == tasks
    check_tasks(run.tasks)


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_file_lists_its_parameters_with_their_defaults(method):
    cls = methods.get(method)
    assert composed(f"method={method}").params == {field.name: getattr(cls(), field.name) for field in fields(cls)}


@pytest.mark.parametrize("method", METHODS)
def test_the_line_of_a_parameter_names_its_choices(method):
    _, (group, *_) = described("config", [f"method={method}"])
    lines = {row.key.removeprefix("method."): f"{row.default} {row.meaning}" for row in group.settings}
    cls = methods.get(method)
    choices = {field.name: get_args(hint(cls, field.name)) for field in fields(cls)}
    literal = {name: [str(one) for one in values if one is not type(None)] for name, values in choices.items()}
    missing = {
        f"{name}={value}": lines[name]
        for name, values in literal.items()
        for value in values
        if not value.startswith("<class") and not re.search(rf"(?<![\w.]){re.escape(value)}(?![\w.]\w)", lines[name])
    }
    assert missing == {}


def test_a_task_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("task: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"cannot read the task file .*latin\.yaml: 'utf-8' codec"):
        composed("tasks=latin", f"tasks.include={tmp_path}")


def test_every_built_in_method_has_a_file():
    assert set(methods.names()) >= set(METHODS)
    assert set(methods.BUILT_IN) == set(METHODS)


def test_the_defaults():
    run = composed()
    assert (run.method["name"], run.model.name, run.tasks.name) == ("idpruner", "pocket", "pocket")
    assert run.budget.keep == 0.25


def test_tokens_switches_the_default_share_off():
    assert composed("tokens=64").budget.label == "64tok"


def test_a_single_task_of_lmms_eval_takes_the_published_metric():
    assert composed("tasks=pope").tasks.metrics == {"pope": "pope_accuracy,none"}
    assert composed("tasks=gqa").tasks.metrics == {"gqa": None}
    given = composed("tasks=pope", "tasks.metrics.pope='pope_f1_score,none'")
    assert given.tasks.metrics == {"pope": "pope_f1_score,none"}


def test_the_papers_suites_are_its_benchmarks():
    image, video = composed("tasks=paper_image").tasks, composed("tasks=paper_video").tasks
    assert (len(image.metrics), len(video.metrics)) == (11, 3)
    assert all(image.metrics.values())
    assert all(video.metrics.values())
    both = composed("tasks=[paper_image,paper_video]").tasks
    assert both.name == "paper_image+paper_video"
    assert both.metrics == {**image.metrics, **video.metrics}


def test_several_tasks_make_one_suite():
    tasks = composed("tasks=[mme,mmstar]").tasks
    assert tasks.name == "mme+mmstar"
    assert list(tasks.metrics) == ["mme", "mmstar"]


def test_a_private_method_with_its_parameters(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("")
    run = composed(f"method={file}:Mine", "method.alpha=3")
    assert run.method == {"name": f"{file}:Mine", "alpha": 3}


def test_a_private_methods_parameter_can_be_swept(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("")
    choice, alpha = register([f"method={file}:Mine", "method.alpha=1,2"])
    assert choice.startswith("method=mine-Mine-")
    assert alpha == "method.alpha=1,2"
    assert validate(compose("config", [choice, "method.alpha=2"])).params == {"alpha": 2}


def test_private_methods_that_share_names_are_swept_apart(tmp_path):
    files = [tmp_path / version / "my method.py" for version in ("v1", "v2")]
    for file in files:
        file.parent.mkdir()
        file.write_text("")
    names = [f"{file}:Mine" for file in files]
    (override,) = register(["method=" + ",".join(f"'{name}'" for name in names)])
    options = override.removeprefix("method=").split(",")
    assert [validate(compose("config", [f"method={option}"])).method["name"] for option in options] == names


def test_slurm_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    assert composed("hydra/launcher=slurm").model.name == "pocket"


def test_published_metrics_belong_to_tasks_that_lmms_eval_has():
    metrics = yaml.safe_load(conf("tables", "metrics.yaml").read_text())
    check_tasks(composed(f"tasks=[{','.join(metrics)}]").tasks)


MISTAKES = {
    "unknown key": (["kep=0.5"], "unknown key kep: did you mean keep?"),
    "unknown model key": (["model.atn=sdpa"], "did you mean model.attn?"),
    "unknown parameter": (["method.lamb=0.5"], "did you mean method.lam?"),
    "keep of zero": (["keep=0"], "(0, 1]"),
    "keep above one": (["keep=1.5"], "(0, 1]"),
    "keep no number": (["keep=most"], "keep must be a number or null, got most"),
    "tokens of zero": (["tokens=0"], "at least 1"),
    "two budgets": (["keep=0.5", "tokens=9"], "exclude each other"),
    "keep a list": (["keep=[0.1]"], "keep must be a number or null, got [0.1]"),
    "no seed": (["seed=null"], "seed must be a whole number, got null"),
    "batches of auto": (["model.batch_size=auto"], "model.batch_size must be a whole number, got auto"),
    "neither true nor false": (["force=x"], "force must be true or false, got x"),
    "an added key": (["+kep=1"], "unknown key kep: did you mean keep?"),
    "a folder of conf/ that is no choice": (["recipe=pocket"], "unknown key recipe"),
    "an unknown key in a mapping": (["tasks.metrics={mmstar_x:average}"], "tasks=pocket has no metrics.mmstar_x"),
    "an interpolation of nothing": (["model.name=${nope}"], "model.name: Interpolation key 'nope' not found"),
    "a log of Hydra's": (
        ["hydra.verbose=true"],
        "hydra.verbose shows nothing, since Hydra logs nothing here: pass verbose=true",
    ),
    "a folder of Hydra's": (["hydra.run.dir=/proc/x"], "hydra.run.dir is no setting of this command"),
    "another working directory": (["hydra.job.chdir=true"], "hydra.job.chdir is no setting of this command"),
    "a word": (["idpruner"], "cannot read the argument idpruner: expected key=value"),
    "no budget": (["keep=null"], "no budget"),
    "unknown method": (["method=idprunner"], "did you mean idpruner?"),
    "unavailable method": (["method=adatp"], "method 'adatp' is not available: its code is not public"),
    "a method like several": (["method=visp"], "did you mean vispruner or visionzip or evs?"),
    "a method like none": (["method=zzzz"], "known: avg_pool, cdpruner, d2pruner, dart"),
    "a model like none": (["model=zzz"], "unknown model zzz: known: "),
    "a task like none": (["tasks=zzzzzzz"], "that python -m lmms_eval --tasks list lists"),
    "unknown model": (["model=qwen25vl7"], "did you mean qwen25vl7b"),
    "unknown task": (["tasks=mmstr"], "did you mean mmstar?"),
    "unknown dtype": (["model.dtype=fp8"], "float32"),
    "pixel limits": (["model.min_pixels=9000000"], "model.min_pixels"),
    "no rate": (["model.fps=0"], "model.fps must be null or a number of frames per second above 0, got 0.0"),
    "a rate that is no number": (["model.fps=fast"], "model.fps must be a number or null, got fast"),
    "an endless rate": (["model.fps=inf"], "model.fps must be a finite number, got inf"),
    "a rate without a limit": (
        ["model.fps=2", "model.max_frames=null"],
        "model.fps=2 needs a limit of frames",
    ),
    "a bound of no rate": (["model.min_frames=4"], "model.min_frames=4 is the least that model.fps= may read"),
    "an odd bound": (["model.fps=2", "model.min_frames=3"], "model.min_frames must be null or an even number"),
    "bounds that cross": (
        ["model.fps=2", "model.min_frames=8", "model.max_frames=6"],
        "model.min_frames=8 must lie between 2 and model.max_frames=6",
    ),
    "no such folder": (["model.pretrained=/no/such/folder"], "no model folder at /no/such/folder"),
    "mistyped folder": (["model.pretrained=my models/qwen"], "no model folder at my models/qwen"),
    "mistyped revision": (["model.pretrained=models/qwen@v1"], "no model folder at models/qwen@v1"),
    "no such scorer": (["model.scorer=nowhere"], "model.scorer=nowhere"),
    "no such method file": (["method=nowhere.py:Mine"], "path/to/file.py:Class"),
    "unparsable": (["keep=[0.5"], "keep=[0.5"),
    "no folder of runs": (["runs=''"], "runs is an empty text, expected a value: pass one"),
    "a blank for a text": (["model.pretrained=' '"], "model.pretrained is an empty text"),
    "a model above the runs": (["model.name=.."], "model.name must be a name that a folder can have, got .."),
    "a model among the runs": (["model.name='.'"], "model.name must be"),
    "a model without a name": (["model.pretrained=/"], "model.name must be a name that a folder can have, got ''"),
    "tasks above the runs": (["tasks.name='x/..'"], "tasks.name must be a name that a folder can have, got x/.."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_nothing(mistake, empty, monkeypatch, capfd):
    args, message = MISTAKES[mistake]
    monkeypatch.chdir(empty)
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    monkeypatch.setattr(sys, "argv", ["harness", *args])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("harness", run_name="__main__")
    check_one_line(stopped.value.code, *capfd.readouterr(), message)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (at_least(2), 1, "key must be a whole number of at least 2, got 1"),
        (optional(at_least(2)), True, "key must be null or a whole number of at least 2, got True"),
        (optional(one_of(["a", "b"])), "c", "key must be null or one of a, b, got c"),
        (optional(between(0, 1)), 2, "key must be null or lie between 0 and 1, got 2"),
    ],
)
def test_a_rule_says_what_it_takes_and_that_null_is_allowed(rule, value, message):
    with pytest.raises(UserError) as refused:
        require({"key": value}, {"key": rule})
    assert str(refused.value) == message
    _, holds = rule
    assert bool(holds(None)) == ("be null or " in message)


def test_a_hub_that_is_offline_is_one_line(empty):
    done = run_main("model=qwen25vl7b", cwd=empty, HF_HUB_OFFLINE="1", HF_HOME=str(empty.parent / "hf"))
    check_one_line(done.returncode, done.stdout, done.stderr, "cannot reach the Hub for Qwen/Qwen2.5-VL-7B-Instruct")
    assert list(empty.iterdir()) == []


def check_one_line(code, out, err, message):
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_what_a_method_leaves_to_be_said_is_asked_for_before_the_model_is_loaded(tmp_path):
    (tmp_path / "config.json").write_bytes((WEIGHTS / "config.json").read_bytes())
    run = composed("method=d2pruner")
    with pytest.raises(UserError, match=r"d2pruner has no debiasing prior: make one with python -m harness\.d2prior"):
        checked_method(run, ModelFolder(tmp_path))
    said = composed("method=d2pruner", "method.prior=none")
    assert checked_method(said, ModelFolder(tmp_path)).file_metadata["prior"]["digest"] == "none"


def test_a_file_beside_the_weights_is_taken_unless_another_is_named():
    run = composed("method=d2pruner")
    assert checked_method(run, ModelFolder(WEIGHTS)).file_metadata["prior"]["tasks"] == "pocket_scenes"
    said = composed("method=d2pruner", "method.prior=none")
    assert checked_method(said, ModelFolder(WEIGHTS)).file_metadata["prior"]["digest"] == "none"


def test_a_file_beside_the_weights_that_does_not_fit_says_what_to_do():
    run = composed("method=d2pruner", "method.layer=0")
    remedy = "the method is at layer:0: make one with python -m harness.d2prior .* layer=0, or say method.prior=none"
    with pytest.raises(UserError, match=remedy):
        checked_method(run, ModelFolder(WEIGHTS))


def test_a_hub_that_does_not_answer_fails_fast(empty):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        started = time.monotonic()
        done = run_main("model=qwen25vl7b", cwd=empty, HF_HOME=str(empty.parent / "hf"), **hub)
    check_one_line(done.returncode, done.stdout, done.stderr, "point to a local folder: model.pretrained=/path")
    assert time.monotonic() - started < 20


def test_every_job_of_a_sweep_is_checked_before_the_first_starts(empty):
    from tiny_models import tiny_folder

    model = f"model.pretrained={tiny_folder(empty.parent)}"
    done = run_main("-m", model, "tasks=pope", "keep=0.5,0.25,2", cwd=empty)
    assert done.returncode == 2
    assert done.stderr.startswith("error: keep must be")
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weight file"),
        (lambda folder: os.truncate(folder / "model.safetensors", 600_000), "not fully covered; is it cut short"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"),
            "header too large.*Git LFS pointer",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"\xff" * 64),
            "invalid UTF-8 in header",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]"),
            "invalid JSON in header",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("version https://git-lfs"), "config.json is not JSON"),
        (lambda folder: (folder / INDEX).write_text("version https://git-lfs"), f"{INDEX} is not JSON"),
        (lambda folder: (folder / INDEX).write_text("{}"), f"{INDEX} has no weight_map"),
        (lambda folder: (folder / "processor_config.json").unlink(), "processor_config.json"),
    ],
)
def test_a_damaged_model_folder_names_the_file(damage, message, tmp_path):
    from tiny_models import tiny_folder

    from harness.models.checkpoint import check

    folder = tiny_folder(tmp_path)
    config = composed(f"model.pretrained={folder}").model
    assert check(config) == folder
    damage(folder)
    with pytest.raises(UserError, match=message):
        check(config)


def test_a_missing_shard_is_named(tmp_path):
    from tiny_models import tiny_processor, tiny_qwen

    from harness.models.checkpoint import check

    tiny_qwen().save_pretrained(tmp_path, max_shard_size="200KB")
    tiny_processor().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    config = composed(f"model.pretrained={tmp_path}").model
    check(config)
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        check(config)


def test_help_says_how_and_leaves_nothing(empty):
    done = run_main("--help", cwd=empty)
    assert done.returncode == 0
    assert "idpruner" in done.stdout
    assert "keep" in done.stdout
    assert list(empty.iterdir()) == []
