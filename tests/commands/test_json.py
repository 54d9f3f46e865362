"""JSON is written and read in one place: no NaN in it, and lines end at a newline alone."""

import ast
import json
import math

import pytest
from doc_guides import ROOT
from hypothesis import example, given
from hypothesis import strategies as st

from harness.core.console import print_json
from harness.core.errors import UserError
from harness.core.files import from_json, from_jsonl, json_line, json_lines, nan_as_null, read_jsonl, to_json

WRITER = "harness/core/files.py"
SOURCES = sorted(path for room in ("harness", "methods", "scripts") for path in (ROOT / room).rglob("*.py"))
SPLIT = {  # file -> what it cuts into lines
    "harness/analyze/masks.py": "a question",
    "harness/bench/environment.py": "what nvidia-smi prints",
    "harness/doctor/machine.py": "what nvidia-smi prints",
    "harness/evaluation/slurm.py": "what sbatch prints",
    "harness/list.py": "a docstring",
    "harness/results/submissions.py": "logs, and what squeue prints",
    "scripts/time_runs.py": "what a run prints",
    "scripts/versions.py": "metadata of a package, and what a check prints",
}
SEPARATORS = ["two\u2028lines", "\x85", "\u2029", "a\rb", "a\x0bb\x0cc", "\x1c\x1d\x1e"]


def calls(source, *names):
    """Yield (name, keywords) of the calls of `names`, as "json.dumps", whatever the module was imported as."""
    tree = ast.parse(source)
    modules, functions = {}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            functions |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)):
        if isinstance(node, ast.Attribute):
            owner = modules.get(node.value.id) if isinstance(node.value, ast.Name) else None
            name = f"{owner}.{node.attr}" if owner else f".{node.attr}"
        else:
            name = functions.get(node.id, node.id)
        if name in names:
            yield name, node.lineno


def test_json_is_written_in_one_file():
    """Methods import nothing of ours: there, NaN has to be forbidden in the call."""
    found = []
    for path in SOURCES:
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        lines = text.splitlines()
        found += [
            f"{name}:{line}"
            for _, line in calls(text, "json.dump", "json.dumps")
            if name != WRITER and not (name.startswith("methods/") and "allow_nan=False" in lines[line - 1])
        ]
    assert found == []


def test_no_file_of_ours_is_cut_at_separators_of_unicode():
    """`splitlines` cuts at U+2028, which answers may hold: it is for what is listed here, and for no file of JSON."""
    found = {
        str(path.relative_to(ROOT)) for path in SOURCES if list(calls(path.read_text(encoding="utf-8"), ".splitlines"))
    }
    assert found - SPLIT.keys() == set()
    assert SPLIT.keys() - found == set()


@pytest.mark.parametrize(
    "text",
    [
        "import json\njson.dumps(1)",
        "import json as j\nj.dump(1, f)",
        "from json import dumps\ndumps(1)",
        "from json import dumps as d\nmap(d, x)",
        "import json\nmap(json.dumps, x)",
    ],
)
def test_the_scan_finds_every_way_to_write(text):
    assert len(list(calls(text, "json.dump", "json.dumps"))) == 1
    assert list(calls("x.dumps(1)\nmydumps(1)", "json.dump", "json.dumps")) == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_neither_written_nor_read(number, tmp_path, capsys):
    for write in (to_json, json_line, print_json, lambda value: json_lines([value])):
        with pytest.raises(ValueError, match="JSON"):
            write({"score": [number]})
    assert capsys.readouterr().out == ""
    text = json.dumps({"score": number})
    for read in (from_json, lambda text: from_jsonl(text.encode())):
        with pytest.raises(ValueError, match="no number of JSON"):
            read(text)
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match=r"damaged in line 1: .*no number of JSON; again"):
        list(read_jsonl(tmp_path / "file", "again"))


def test_what_is_undefined_is_null():
    assert nan_as_null({"low": math.nan, "rows": [(1.0, math.nan)], "p": 0.5}) == {
        "low": None,
        "rows": [[1.0, None]],
        "p": 0.5,
    }
    assert nan_as_null(math.inf) == math.inf


def test_a_line_ends_at_a_newline_alone(tmp_path):
    (tmp_path / "file").write_text(json_lines(SEPARATORS), encoding="utf-8", newline="")
    assert list(read_jsonl(tmp_path / "file", "")) == from_jsonl((tmp_path / "file").read_bytes()) == SEPARATORS


def test_blank_lines_and_line_ends_of_windows_are_spaces(tmp_path):
    (tmp_path / "file").write_bytes(b'{"a": "\\u2028"}\r\n\r\n  \n{"a": 2}')
    assert list(read_jsonl(tmp_path / "file", "")) == [{"a": "\u2028"}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": ', "Expecting value"),
        (b'"\xff"', "utf-8"),
        (b"[" * 100_000, "recursion"),
        (b"[1]", "it is a list"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    (tmp_path / "file").write_bytes(b'{"a": 1}\n' + line)
    with pytest.raises(UserError, match=rf"file is damaged in line 2.*{message}.*; repeat it$"):
        list(read_jsonl(tmp_path / "file", "repeat it", lambda value: "it is a list" if value == [1] else None))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)  # with halves of surrogate pairs
VALUES = st.recursive(LEAVES | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=12)


@given(VALUES)
@example([-0.0, 10**40, "\ud800"])
def test_parsing_gives_what_the_standard_library_gives(value):
    text = json.dumps(value)
    assert repr(from_json(text)) == repr(from_json(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["-0", "1E5", "1e-400", '{"a": 1, "a": 2}', " [ ] ", '"\\ud83d\\ude00"', "0.1e1"])
def test_odd_json_gives_what_the_standard_library_gives(text):
    assert repr(from_json(text)) == repr(json.loads(text))
