"""What is peculiar to Qwen2-VL under `prune`: its checkpoints, and layers of its text that see a window."""

import copy

import pytest
import torch
from questions import ask, picture
from reference_prune import generate
from tiny_qwen2 import tiny_qwen2, tiny_qwen2_processor

import harness
import methods
from harness.core.config import ModelConfig
from harness.models import loading
from harness.models.limits import limits_of
from harness.models.preprocessing import to_inputs
from harness.models.qwen2vl import Qwen2VL


@torch.no_grad()
def test_a_checkpoint_loads_and_answers(tmp_path):
    model, processor = tiny_qwen2(), tiny_qwen2_processor()
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    pixels = {"min_pixels": 4 * 784, "max_pixels": 64 * 784, "max_frames": 4}
    config = ModelConfig(name="tiny", pretrained=str(tmp_path), dtype="float32", device="cpu", **pixels)
    loaded = loading.load(config)
    messages = ask(picture(84, 112), [picture(56, 84)] * 4)
    inputs = to_inputs(loaded.processor, [messages], limits_of(loaded.processor, config))
    with harness.prune(loaded.model, "hiprune", keep=0.5) as pruning:
        assert generate(loaded.model, inputs) != generate(model, inputs)
    (record,) = pruning.records
    assert (record.grids, record.n, record.k) == ([(1, 4, 3), (2, 3, 2)], 24, 12)


def test_a_window_of_attention_is_refused_inside_the_language_model():
    config = copy.deepcopy(tiny_qwen2().config)
    Qwen2VL.check(methods.load("fastv"), config)
    config.text_config.layer_types = ["full_attention"] * 2 + ["sliding_attention"] * 2
    Qwen2VL.check(methods.load("idpruner"), config)
    with pytest.raises(ValueError, match="fastv cuts inside the language model, whose layers are of types"):
        Qwen2VL.check(methods.load("fastv"), config)
