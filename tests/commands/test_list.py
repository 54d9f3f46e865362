"""`harness.list` says of every method what there is to know, on a terminal of 100 columns and as JSON."""

import json
import os
import signal
import subprocess
import sys

import pytest
from fork_server import completed
from last_line import report_of
from omegaconf import DictConfig

import methods
from harness import list as listing
from harness.core.overrides import parse
from harness.models.qwen25vl import Qwen25VL
from methods.base import Signal

PRIVATE = '''
from dataclasses import dataclass
from typing import Literal
from methods.base import Method, Selection, Signal


@dataclass(kw_only=True)
class Mine(Method):
    """Keep what a scorer likes.

    Args:
        side: of two that are alike, "left" or "right" stays, and this sentence goes on until it has left the first
            line behind.
    """

    unpublished_params = frozenset({"side"})
    side: Literal["left", "right"] = "left"

    def _select(self, tokens, k, generator): ...
'''


@pytest.fixture(scope="module")
def found():
    return listing.describe_all(methods.names())


def test_every_method_is_there_with_all_that_the_command_promises(found):
    assert [method["name"] for method in found] == methods.names()
    for method in found:
        assert method.keys() >= {"stage", "needs", "variants", "fidelity", "flash", "servable", "params", "families"}
        assert json.loads(json.dumps(method)) == method
    facts = {method["name"]: method for method in found}
    assert facts["fastv"]["variants"] == ["official", "paper"]
    assert (facts["fastv"]["stage"], facts["fastv"]["servable"]) == ("layer:1", False)
    assert facts["id_selection"]["with"]["importance=visionselector"] == {"stage": "input", "needs": ["importance"]}
    assert facts["hybrid"]["not_public"] == ["mapping"]


def test_the_table_and_every_page_fit_a_terminal(found):
    for text in (listing.table(found), *map(listing.page, found)):
        assert max(map(len, text.splitlines())) <= 100
    lines = listing.table(found).splitlines()
    for method in found:
        assert sum(line.startswith(f"{method['name']} ") for line in lines) == 1


def test_defaults_are_printed_as_the_command_line_takes_them(found):
    d2pruner = {method["name"]: method for method in found}["d2pruner"]
    assert "  prior=null*\n" in listing.page(d2pruner)
    for method in found:
        lines = listing.page(method).partition("\nparameters")[2].splitlines()
        said = [line.split()[0].rstrip("*") for line in lines if "=" in line]
        assert {o.key_or_group: o.value() for o in parse(said)} == method["params"]


def test_a_family_that_lacks_a_signal_says_why(monkeypatch):
    monkeypatch.setattr(Qwen25VL, "supplies", frozenset({Signal.IMPORTANCE}))
    monkeypatch.setattr(Qwen25VL, "lacks", {Signal.VIT_KEYS: "it has no eyes"})
    method = listing.describe("visionzip")
    assert method["families"]["qwen2_5_vl"].endswith("(it has: importance; it has no eyes)")
    assert listing.describe("divprune")["families"]["qwen2_5_vl"] is None
    (row,) = [line for line in listing.table([method]).splitlines() if line.startswith("visionzip")]
    assert "-" in row.split("official, paper")[1]
    assert "not qwen2_5_vl: visionzip needs vit_attention, vit_keys" in listing.page(method)


def test_a_private_methods_page(tmp_path):
    (tmp_path / "mine.py").write_text(PRIVATE)
    page = listing.page(listing.describe(f"{tmp_path / 'mine.py'}:Mine"))
    assert "Keep what a scorer likes." in page
    assert "fidelity    undeclared" in page
    assert "parameters  side=left*   one of left, right" in page
    assert '    side: of two that are alike, "left" or "right" stays, and this sentence goes on until it has\n' in page


def test_a_packages_method_that_does_not_load_hides_no_other(monkeypatch):
    monkeypatch.setitem(methods.BUILT_IN, "broken", "no_such_module:Method")
    found = listing.describe_all(["broken", "uniform"])
    assert "no_such_module" in found[0]["error"]
    assert "broken does not load: method module 'no_such_module' cannot be imported" in listing.table(found)


def test_what_is_published_and_cannot_be_written_has_a_row_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(methods, "BUILT_IN", {"uniform": methods.BUILT_IN["uniform"]})
    why = methods.UNAVAILABLE["adatp"]
    listing.main(DictConfig({"show": None}))
    *lines, last = capsys.readouterr().out.splitlines()
    assert " ".join(lines).count(f"adatp is not available: {why}") == 1
    assert report_of(last)["unavailable"] == {"adatp": why}
    monkeypatch.setitem(methods.BUILT_IN, "adatp", methods.BUILT_IN["uniform"])  # as if somebody had written it
    listing.main(DictConfig({"show": None}))
    assert "not available" not in capsys.readouterr().out


@pytest.mark.parametrize("command", [["harness.list"], ["harness", "--help"]], ids=" ".join)
def test_nobody_who_reads_is_no_error(command):
    """As in `python -m harness.list | head -2`; here the reader has left before the first line."""
    reads, writes = os.pipe()
    os.close(reads)
    call = [sys.executable, "-m", *command]
    done = subprocess.run(call, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["method=fastv"], 0, ""),
        (["method=fastvv"], 2, "did you mean 'fastv'?"),
        (["method=adatp"], 2, methods.UNAVAILABLE["adatp"]),
    ],
)
def test_the_command(args, code, says, tmp_path):
    done = completed(tmp_path, "harness.list", *args)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1 if code else 0)
    if code:
        assert says in done.stderr
    else:
        assert [method["name"] for method in report_of(done.stdout)["methods"]] == ["fastv"]
        assert "softmax_i(q . k_i / sqrt(d))" in done.stdout
    assert list(tmp_path.iterdir()) == []
