"""Checkpoints and scorers whose files are damaged: they load, or one line says which file is not what it has to be."""

import json
import struct

import pytest
import torch
from damage import altered, damaged
from hypothesis import given
from hypothesis import strategies as st
from kinds import inputs

from harness.core.errors import UserError
from harness.models.checkpoint import check_folder
from harness.models.scorer import VisionSelectorScorer, load_scorer, save_scorer

QUICK = inputs(150)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a scorer's folder, which is also a small checkpoint."""
    folder = tmp_path_factory.mktemp("scorer")
    torch.manual_seed(0)
    save_scorer(VisionSelectorScorer(8, 4), folder)
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def written(folder, files):
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def check_both(ends_well, folder):
    ends_well(check_folder, folder)
    ends_well(load_scorer, folder, 8, refusal=(ValueError, UserError))


@QUICK
@given(st.data())
def test_damaged_weights(ends_well, tmp_path, whole, data):
    content = data.draw(damaged(whole[WEIGHTS]))
    check_both(ends_well, written(tmp_path / "model", {**whole, WEIGHTS: content}))


@QUICK
@given(st.data())
def test_other_headers(ends_well, tmp_path, whole, data):
    (length,) = struct.unpack("<Q", whole[WEIGHTS][:8])
    header = json.loads(whole[WEIGHTS][8 : 8 + length])
    text = json.dumps(data.draw(altered(header))).encode()
    content = struct.pack("<Q", len(text)) + text + whole[WEIGHTS][8 + length :]
    check_both(ends_well, written(tmp_path / "model", {**whole, WEIGHTS: content}))


@QUICK
@given(st.data())
def test_other_indexes_and_configurations(ends_well, tmp_path, whole, data):
    names = ["q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"]
    files = {
        INDEX: {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, WEIGHTS)},
        "config.json": json.loads(whole["config.json"]),
    }
    name = data.draw(st.sampled_from(list(files)))
    text = json.dumps(files[name]).encode()
    content = data.draw(damaged(text) | altered(files[name]).map(lambda value: json.dumps(value).encode()))
    check_both(
        ends_well, written(tmp_path / "model", {**whole, INDEX: json.dumps(files[INDEX]).encode(), name: content})
    )


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "../nowhere"])
def test_an_index_that_names_what_no_file_can_be_called(name, whole, tmp_path, ends_well):
    index = json.dumps({"weight_map": {"q_proj.weight": name}}).encode()
    check_both(ends_well, written(tmp_path / "model", {**whole, INDEX: index}))
