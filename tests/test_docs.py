"""What docs/add-a-method.md shows is what happens."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import methods
from harness import cli
from harness import list as listing
from harness.choices import register
from methods.base import Tokens

PAGE = (Path(__file__).parents[1] / "docs" / "add-a-method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of the page."""
    for kind, text in BLOCKS:
        if kind == "python":
            (tmp_path / text.split("\n", 1)[0].removeprefix("# ")).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(command, module):
    program, dash, name, *rest = shlex.split(command)
    assert (program, dash, name) == ("python", "-m", module)
    return rest


def test_it_takes_twenty_lines(folder):
    code = [line for line in (folder / "my_pruner.py").read_text().splitlines()[1:] if line.strip()]
    assert len(code) <= 20


def test_its_page_in_the_list(folder, capsys):
    listing.main(cli.compose("list", listing.prepare(arguments(COMMANDS[0], "harness.list"))))
    out = capsys.readouterr().out
    assert "score_i = || x_i - share * mean(x) ||" in out
    (found,) = json.loads(out.splitlines()[-1])["methods"]
    assert (found["params"], set(found["families"].values())) == ({"share": 1.0}, {None})


def test_its_sweep_composes(folder):
    overrides = register([word for word in arguments(COMMANDS[1], "harness") if word != "-m"])
    assert [text.partition("=")[0] for text in overrides] == ["method", "method.share", "keep"]


def test_its_run_on_the_embedded_model(folder):
    call = [sys.executable, "-m", "harness", *arguments(COMMANDS[2], "harness")]
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    lines = (folder / report["run"] / "kept.jsonl").read_text().splitlines()
    assert [json.loads(line)["k"] == round(json.loads(line)["n"] / 4) for line in lines] == [True, True]


def test_its_contract(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_pruner", raising=False)
    space: dict = {}
    exec((folder / "test_my_pruner.py").read_text(), space)
    space["test_contract"]()


def test_its_entry_point(folder, monkeypatch):
    (text,) = [text for kind, text in BLOCKS if kind == "toml"]
    points = tomllib.loads(text)["project"]["entry-points"]
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    lines = [line for group, names in points.items() for line in (f"[{group}]", *map(" = ".join, names.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_pruner", raising=False)
    tokens = Tokens(torch.tensor([[1.0], [1.0], [9.0], [2.0]]), [(1, 2, 2)])
    assert methods.load("my_pruner", share=1.0).select(tokens, 2).kept.tolist() == [0, 2]
    assert methods.load("my_pruner", share=0.0).select(tokens, 2).kept.tolist() == [2, 3]
