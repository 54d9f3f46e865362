import json
import stat
import tempfile

import pytest
from last_line import report_of

from harness.core.console import LONGEST, print_json, say, table_lines
from harness.core.errors import UserError


def test_columns_are_as_wide_as_their_longest_cell_and_end_without_blanks():
    rows = [("task", "score", "note"), ("pocket_existence", "0.5", ""), ("average", "", "94 %")]
    assert table_lines(rows, left=(0, 2)) == [
        "task              score  note",
        "pocket_existence    0.5",
        "average                  94 %",
    ]
    assert table_lines(rows)[1:] == ["pocket_existence    0.5", "average                  94 %"]
    assert table_lines([("a", "b"), ("longer", "b")], left=None) == ["a       b", "longer  b"]


def test_lines_and_cells_show_control_characters(capsys):
    assert table_lines([("a\x1b[2J", "b\n"), ("longer", "c")], left=None) == [r"a\x1b[2J  b\n", "longer    c"]
    say("one\nline\r\u202e")
    assert capsys.readouterr().out == "one\\nline\\r\\u202e\n"


LONG = {"left": 3, "runs": [{"run": f"run {number}"} for number in range(500)], "notes": ["a"] * 5, "text": "b" * 300}


def test_a_long_json_line_has_lengths_and_names_the_file_with_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    print_json(LONG)
    out = capsys.readouterr().out
    line = json.loads(out)
    assert len(out) <= LONGEST
    assert (out.count("\n"), line["runs"], line["left"], line["notes"]) == (1, 500, 3, ["a"] * 5)
    assert report_of(out) == {**LONG, "json": line["json"]}
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_json_line_names_the_file_that_a_command_has_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    print_json(LONG, tmp_path / "out.json")
    assert json.loads(capsys.readouterr().out)["json"] == str(tmp_path / "out.json")
    short = {"runs": LONG["runs"][:5]}
    print_json(short, tmp_path / "out.json")
    assert json.loads(capsys.readouterr().out) == short
    assert list(tmp_path.iterdir()) == []


def test_without_room_for_a_long_result_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"cannot write the whole result as JSON: .*set TMPDIR"):
        print_json(LONG)
    assert capsys.readouterr().out == ""
