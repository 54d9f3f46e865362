"""Logs of answers and of kept tokens that were damaged: a run resumes from what is whole, or says which line is not."""

import json

from damage import altered, damaged
from hypothesis import given
from hypothesis import strategies as st
from kinds import inputs

from harness.results.response_log import KEPT, RESPONSES, ResponseLog

LINES = [
    {"key": f"k{i}", "task": "t", "doc_id": i, "response": text, "input_tokens": 9, "output_tokens": 2}
    for i, text in enumerate(["yes", "a\u2028b", "c\r\nd\x85"])
]
TOKENS = [
    {
        "key": f"k{i}",
        "task": "t",
        "doc_id": i,
        "n": 8,
        "k": 2,
        "per_layer": 2.0,
        "grids": [[1, 2, 4]],
        "kept": [0, i + 1],
    }
    for i in range(3)
]
QUICK = inputs(300)


def text_of(lines):
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "surrogatepass")


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    for file, lines in ((RESPONSES, LINES), (KEPT, TOKENS)):
        (folder / file).write_bytes(content if file == name else text_of(lines))
    return folder


@QUICK
@given(st.sampled_from([RESPONSES, KEPT]), st.data())
def test_damaged_bytes(ends_well, tmp_path, name, data):
    content = data.draw(damaged(text_of(LINES if name == RESPONSES else TOKENS)))
    log = ends_well(ResponseLog, write(tmp_path / "run", name, content))
    if log is not None:
        assert log.responses.keys() == log.kept.keys()


@QUICK
@given(st.sampled_from([RESPONSES, KEPT]), st.integers(0, 2), st.data())
def test_other_values(ends_well, tmp_path, name, place, data):
    lines = list(LINES if name == RESPONSES else TOKENS)
    lines[place] = data.draw(altered(lines[place]))
    log = ends_well(ResponseLog, write(tmp_path / "run", name, text_of(lines)))
    if log is not None:
        assert log.responses.keys() == log.kept.keys()
