"""Answers with separators of Unicode, and lines that end as on Windows or not at all, from the log to every output."""

import json

import pandas as pd
import pytest
from run_folders import as_before_digests, sealed_again
from synthetic_runs import write_run

from harness import compare, export
from harness.core.errors import UserError
from harness.core.escape import visible
from harness.core.files import read_jsonl
from harness.core.overrides import compose
from harness.report.build import build
from harness.results.response_log import KEPT, RESPONSES, ResponseLog, read_responses
from harness.results.result import Result
from harness.results.run_folder import RunFolder

ANSWERS = ["two\u2028lines", "next\x85line", "two\u2029paragraphs", "a\r\nb", "\x0b\x0c\x1c\x1d\x1e"]


@pytest.fixture
def run(tmp_path):
    """A finished run that gave these answers, next to its baseline."""
    for method in ("none", "random"):
        folder = write_run(tmp_path / "runs", method, questions=len(ANSWERS), tasks={"one": "accuracy,none"})
        folder.amend({"identity": {**folder.identity, "seed": 0}})
        lines = list(read_jsonl(folder.path / RESPONSES, ""))
        (folder.path / RESPONSES).unlink()
        log = ResponseLog(folder.path)
        kept = [{**line, "kept": [0], "n": 2, "k": 1, "per_layer": 1.0, "grids": [[1, 1, 2]]} for line in lines]
        log.add([{**line, "response": text} for line, text in zip(lines, ANSWERS, strict=True)], kept)
        sealed_again(folder.path)
    return folder


def test_a_log_is_read_again_as_it_was_written(run):
    before = {name: (run.path / name).read_bytes() for name in (RESPONSES, KEPT)}
    log = ResponseLog(run.path)
    assert [line["response"] for line in log.responses.values()] == ANSWERS
    log.settle(list(log.responses))
    assert {name: (run.path / name).read_bytes() for name in before} == before


def test_every_reader_has_the_answers_as_they_were_given(run, tmp_path, capsys):
    assert [line["response"] for line in read_responses(run.path, "")] == ANSWERS
    runs, out = tmp_path / "runs", tmp_path / "out"
    export.main(compose("export", [f"runs={runs}", f"out={out}", f"archive={tmp_path / 'archive'}"]))
    rows = pd.read_parquet(out / "data" / "questions.parquet")
    assert rows.loc[rows["method"] == "random", "response"].tolist() == ANSWERS
    assert Result.of(tmp_path / "archive" / run.path.relative_to(runs)).hash == Result.of(run.path).hash
    (baseline,) = (path for path in run.path.parent.glob("none-*"))
    compare.main(compose("compare", [f"a={baseline}", f"b={run.path}"]))
    assert json.loads(capsys.readouterr().out.split("\n")[-2])["tasks"]["one"]["agreement"] == 100
    build(compose("report", [f"runs={runs}", f"out={tmp_path / 'page.html'}", "pictures=false"]))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for text in ANSWERS[:3]:
        assert json.dumps(visible(text))[1:-1] in page


def test_a_log_with_line_ends_of_windows_goes_on_with_those_of_its_own(tmp_path):
    folder = RunFolder(tmp_path / "run", {})
    line = {"key": "a", "task": "t", "doc_id": 0}
    response, kept = {"response": "x", "input_tokens": 1, "output_tokens": 1}, {"n": 1, "k": 1, "kept": [0]}
    folder.open({}).add([{**line, **response}], [{**line, **kept, "per_layer": 1.0, "grids": []}])
    whole = (folder.path / RESPONSES).read_bytes()
    (folder.path / RESPONSES).write_bytes(whole.replace(b"\n", b"\r\n"))
    assert list(folder.open({}).responses) == ["a"]
    assert (folder.path / RESPONSES).read_bytes() == whole


@pytest.mark.parametrize("name", [RESPONSES, KEPT])
@pytest.mark.parametrize("torn", [lambda line: line[:-9], lambda line: b"{}\n", lambda line: b"[" * 100_000])
def test_a_torn_file_is_one_line_in_export(name, torn, run, tmp_path):
    """Also without digests, which would have found it."""
    as_before_digests(run.path)
    *lines, last = (run.path / name).read_bytes().splitlines(keepends=True)
    (run.path / name).write_bytes(b"".join(lines) + torn(last))
    with pytest.raises(UserError, match=rf"{name} is damaged in line 5.*; run it again with force=true$"):
        export.main(compose("export", [f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]))
    assert not (tmp_path / "out").exists()
