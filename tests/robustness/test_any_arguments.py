"""Arguments of commands: any text ends in an answer or in one line and exit code 2."""

import contextlib
import io
import runpy
import sys

import pytest
from damage import HOSTILE, LEAVES
from hypothesis import given
from hypothesis import strategies as st
from kinds import inputs, tried
from omegaconf import OmegaConf

from harness.core.config import validate
from harness.core.overrides import compose, parse
from harness.core.values import checked

KEYS = ["method", "method.lam", "model", "model.pretrained", "model.name", "model.batch_size", "model.device"]
KEYS += ["model.max_pixels", "model.dtype", "model.scorer", "model.revision", "tasks", "tasks.include", "tasks.name"]
KEYS += ["tasks.metrics", "keep", "tokens", "seed", "positions", "data_root", "limit", "sample", "questions", "strict"]
KEYS += [
    "share_gb",
    "runs",
    "verify",
    "force",
    "unknown",
    "hydra.run.dir",
    "hydra/launcher",
    "experiment",
    "+x",
    "~keep",
]
NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1e400", "9" * 40, "null", "true"]
GRAMMAR = [
    "[1,2]",
    "{a: 1}",
    "1,2",
    "range(3)",
    "glob(*)",
    "interval(0,1)",
    "${oc.env:HOME}",
    "${keep}",
    "???",
    "[",
    "\\",
]
VALUES = st.sampled_from([*HOSTILE, *NUMBERS, *GRAMMAR, "idpruner", "pocket"]) | st.text(max_size=12)


def ended(module, *args):
    """Run a command in this process; return its exit code, which is 0 or 2, and then it said one line."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [module, *args])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code
    errors = [line for line in err.getvalue().split("\n") if line.startswith("error: ")]
    assert code in (0, None, 2), (args, code, err.getvalue())
    assert len(errors) == (code == 2), (args, err.getvalue())
    assert all(line.isprintable() for line in errors), (args, errors)
    return code


@inputs(60)
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=2))
def test_the_main_command(request, tmp_path, monkeypatch, pairs):
    monkeypatch.chdir(tmp_path)
    with tried(request):
        ended("harness", "dry_run=true", "runs=runs", *[f"{key}={value}" for key, value in pairs])
    assert not list(tmp_path.rglob("DONE"))


@inputs(300)
@given(st.text(max_size=30) | st.builds("{}={}".format, st.sampled_from(KEYS), VALUES))
def test_the_parser(ends_well, text):
    ends_well(parse, [text])


@pytest.fixture(scope="module")
def composed():
    return compose("config", ["model=pocket"])


@inputs(300)
@given(st.sampled_from([key for key in KEYS if key.isidentifier() or "." in key]), LEAVES)
def test_the_values(ends_well, composed, key, value):
    def validated():
        cfg = composed.copy()
        OmegaConf.set_struct(cfg, False)
        OmegaConf.update(cfg, key, value, merge=False)
        return validate(checked(cfg))

    ends_well(validated)
