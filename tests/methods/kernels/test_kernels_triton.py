"""The Triton paths pick what the plain loops pick: in Triton's interpreter and, where there is a GPU, on it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import KERNELS, KINDS

ROOT = Path(__file__).parents[3]
HELPERS = ROOT / "tests" / "helpers"
SEEDS = 2 * len(KINDS)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: torch sees no GPU")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="NOT TESTED: triton is not installed (pip install triton)"
)


def run(script, *args, **environment):
    path = os.pathsep.join([str(HELPERS), str(ROOT)])
    done = subprocess.run(
        [sys.executable, HELPERS / script, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=["1", pytest.param("0", marks=NO_GPU)], ids=["interpreted", "on a GPU"])
def found(request):
    return run("triton_paths.py", SEEDS, TRITON_INTERPRET=request.param)


@pytest.mark.parametrize("kernel", [*KERNELS, *(f"several {name}" for name in KERNELS)])
def test_same_picks_as_the_plain_loop(found, kernel):
    assert not found[kernel]["wrong"]
    enough = 0.3 if "several" in kernel else 0.6  # one sample that is left to the plain loop is enough
    assert found[kernel]["share"] > enough, found[kernel]["handed_over"]


def test_same_attention_as_the_map(found):
    assert found["attention"] < 1e-5


def test_every_kernel_compiles_for_the_gpu_that_it_is_meant_for(tmp_path):
    """Without one: the interpreter takes more than the compiler does."""
    sizes = run("triton_compiled.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    source = "".join(file.read_text() for file in (ROOT / "methods" / "kernels" / "gpu").glob("*.py"))
    compiled = {name.split()[0].partition(".")[2] for name in sizes}
    launched = set(re.findall(r"^ +(_\w+)\[", source, re.MULTILINE))
    assert launched == compiled
    assert min(sizes.values()) > 1000
