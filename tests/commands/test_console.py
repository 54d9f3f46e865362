from harness.core.console import say, table_lines


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
