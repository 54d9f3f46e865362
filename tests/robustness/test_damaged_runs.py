"""Finished runs of which a file was changed: refused by all who read them, or, if it says it is so, shown or refused.

A run that was sealed again after the change stands for what another program, or an older or newer harness, has written.
"""

import contextlib
import io
import json
import shutil

import pytest
from damage import altered, damaged
from hypothesis import given
from hypothesis import strategies as st
from kinds import inputs, tried
from run_folders import sealed_again
from synthetic_runs import write_run

from harness import compare, export, status, tables
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.report.build import build
from harness.results.result import Result, load_results

QUICK = inputs(240)
FILES = ["run.json", "metrics.json", "scores.json", "kept.jsonl", "responses.jsonl", "DONE"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    for method in ("none", "random"):
        write_run(root, method, questions=4, tokens=8)
    return root


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Every command that reads runs, as a function of the folder; its configuration is composed once."""
    out = tmp_path_factory.mktemp("out")
    composed = {name: compose(name, []) for name in ("tables", "status", "export", "report", "compare")}

    def with_runs(name, root, **more):
        cfg = composed[name].copy()
        cfg.runs = str(root)
        for key, value in more.items():
            cfg[key] = value
        return cfg

    def compared(root):
        none, random = sorted((path.parent for path in root.rglob("DONE")), key=lambda path: path.name)
        compare.compare(Result.of(random), Result.of(none), Result.of(none))

    return {
        "tables": lambda root: tables.main(with_runs("tables", root)),
        "status": lambda root: status.main(with_runs("status", root)),
        "export": lambda root: export.per_question(load_results(str(root))),
        "archive": lambda root: export.update_archive(load_results(str(root)), out / "archive"),
        "report": lambda root: build(with_runs("report", root, out=str(out / "report.html"))),
        "compare": compared,
    }


def changed(whole, tmp_path, name, data):
    """Copy the runs, with another file `name` in the pruned one; return the folder of all, and its own."""
    root = tmp_path / "runs"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    (folder,) = (path.parent for path in root.rglob("DONE") if path.parent.name.startswith("random"))
    content = (folder / name).read_bytes()
    if data.draw(st.booleans(), "bytes"):
        other = data.draw(damaged(content))
    else:
        lines = content.decode().split("\n") if name.endswith("jsonl") else [content.decode()]
        lines[0] = json.dumps(data.draw(altered(json.loads(lines[0]))))
        other = "\n".join(lines).encode()
    (folder / name).write_bytes(other)
    return root, folder, other != content


def ended(reader, root):
    """Return whether a reader refused the runs; anything but UserError fails the test."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            reader(root)
        except UserError as error:
            return str(error)
    return ""


@QUICK
@given(st.data())
def test_a_changed_file_is_refused_by_name(whole, readers, tmp_path, request, data):
    name = data.draw(st.sampled_from(FILES))
    root, _, is_other = changed(whole, tmp_path, name, data)
    reader = data.draw(st.sampled_from([reader for reader in readers if reader != "status"]))
    with tried(request):
        refusal = ended(readers[reader], root)
        if is_other and name != "DONE":
            assert name in refusal
        assert not ended(readers["status"], root) or name in ("run.json", "DONE")


@QUICK
@given(st.data())
def test_a_file_of_another_writer_is_read_or_refused(whole, readers, tmp_path, request, data):
    name = data.draw(st.sampled_from([name for name in FILES if name != "DONE"]))
    root, folder, _ = changed(whole, tmp_path, name, data)
    sealed_again(folder)
    reader = data.draw(st.sampled_from(list(readers)))
    with tried(request):
        ended(readers[reader], root)
