"""Declared versions are honest: no answer changes under the version that results are kept under."""

import copy
import json

import golden
import pytest
from tiny_families import OTHER_TOWERS

from harness.models import FAMILIES

WRITE = "then write it again: python tests/helpers/golden.py"
COMMITTED = json.loads(golden.FILE.read_text(encoding="utf-8"))
OTHER = {"kept": "other", "answers": "other", "logits": [0.0] * 3, "inputs": [0.0] * 3}
CHANGES = [  # what changed in which cases, and which version has to rise
    ({"llava inputs": ["inputs"], "llava none": ["logits"], "llava random": ["kept"]}, ["preprocessing"]),
    ({"llava none": ["logits"], "llava random": ["kept", "logits"]}, ["family llava"]),
    ({"llava random": ["kept", "logits", "answers"]}, ["method random"]),
    ({"llava fastv official": ["kept"], "llava dpp": ["kept"]}, ["method dpp", "method fastv official"]),
    ({"llava random": ["logits"], "llava dpp": ["answers"]}, ["cut"]),
]


@pytest.mark.parametrize("which", [*FAMILIES, *OTHER_TOWERS, *golden.POCKET])
def test_an_answer_that_changed_raises_a_version(which):
    today = golden.cases(which)
    versions = golden.versions()
    for version, case in golden.to_raise(COMMITTED["cases"][which], today).items():
        raised = versions[version] > COMMITTED["versions"][version]
        what = "" if raised else f"raise the version of {version}, "
        pytest.fail(f"{case} is not what golden.json holds: {what}{WRITE}")
    assert today.keys() == COMMITTED["cases"][which].keys(), f"cases came or went: {WRITE}"


def test_the_file_has_the_versions_of_today():
    assert COMMITTED["versions"] == golden.versions(), WRITE


@pytest.mark.parametrize(("changed", "versions"), CHANGES)
def test_which_version_has_to_rise(changed, versions):
    before = COMMITTED["cases"]["llava"]
    today = copy.deepcopy(before)
    for case, keys in changed.items():
        today[case] |= {key: OTHER[key] for key in keys}
    assert sorted(golden.to_raise(before, today)) == versions


def test_where_most_methods_keep_other_tokens_it_is_the_family():
    before = COMMITTED["cases"]["llava"]
    today = {
        name: case if name.endswith((" none", " inputs")) else case | {"kept": "x"} for name, case in before.items()
    }
    assert list(golden.to_raise(before, today)) == ["family llava"]
