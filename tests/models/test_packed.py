"""Folders whose tower is stored in int8: they load as any other, and not half."""

import json
import re
import shutil

import pytest
import torch
from reference_prune import generate, inputs_of
from safetensors.torch import load_file, save_file
from tiny_models import DINOV2, HIDDEN, tiny_llava, tiny_llava_processor
from transformers import LlavaForConditionalGeneration

import harness
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.models import checkpoint, loading
from harness.models.checkpoint import DECODER, TOWER
from harness.models.int8 import SCALE, dequantised, quantised
from harness.models.packed import PREFIX, from_packed
from harness.models.scorer import VisionSelectorScorer, save_scorer


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "tiny-photo"
    tiny_llava(tower=DINOV2, text="qwen2").save_pretrained(folder)
    tiny_llava_processor(DINOV2).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tower = {name.removeprefix(PREFIX): tensors.pop(name) for name in list(tensors) if name.startswith(PREFIX)}
    assert tower
    save_file(quantised(tower), folder / TOWER)
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, folder / DECODER)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "model")


def load(folder, dtype="float32"):
    return loading.load(ModelConfig(name="tiny", pretrained=str(folder), dtype=dtype, device="cpu"))


def test_the_model_has_the_tensors_of_both_files(pristine):
    loaded, original = load(pristine), tiny_llava(tower=DINOV2, text="qwen2").state_dict()
    tensors = loaded.model.state_dict()
    assert tensors.keys() == original.keys()
    for name, tensor in original.items():
        if "vision_tower" in name:
            back = dequantised(quantised({name: tensor}))[name]
            assert torch.equal(tensors[name], back), name
        else:
            assert torch.equal(tensors[name], tensor.to(torch.bfloat16).float()), name
    assert not torch.equal(tensors["lm_head.weight"], original["lm_head.weight"])  # rounded: this model is no other
    half = load(pristine, dtype="bfloat16").model.state_dict()
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    eos = json.loads((pristine / "generation_config.json").read_text())["eos_token_id"]
    assert loaded.model.generation_config.eos_token_id == eos


@torch.no_grad()
def test_it_is_pruned_like_the_stock_model_that_it_saves(folder, tmp_path):
    torch.manual_seed(0)
    save_scorer(VisionSelectorScorer(HIDDEN, 16), folder / "scorer")
    model, options = from_packed(folder), {"dtype": torch.float32}
    model.save_pretrained(tmp_path / "stock")
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "stock", **options).eval()
    packed, info = from_packed(folder, output_loading_info=True, **options)
    assert not info["missing_keys"]
    inputs = inputs_of(tiny_llava_processor(DINOV2), ["one image", "adjacent"])
    runs = []
    for model, scorer in ((packed.eval(), None), (stock, folder / "scorer")):  # the first one's lies next to it
        with harness.prune(model, "idpruner", keep=0.5, scorer=scorer) as pruning:
            runs.append((generate(model, inputs), [record.kept for record in pruning.records]))
    assert runs[0] == runs[1]


def test_transformers_refuses_the_folder(pristine):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        LlavaForConditionalGeneration.from_pretrained(pristine)


def test_both_files_belong_to_the_identity(folder):
    before = checkpoint.weights_fingerprint(folder)
    for name, tensor in ((DECODER, "multi_modal_projector.linear_1.bias"), (TOWER, "layernorm.bias")):
        tensors = load_file(folder / name)
        save_file(tensors | {tensor: tensors[tensor] + 1}, folder / name)
        assert checkpoint.weights_fingerprint(folder) != before
        before = checkpoint.weights_fingerprint(folder)


def without_decoder(folder):
    (folder / DECODER).unlink()
    return f"missing weight file {folder / DECODER}"


def cut_short(folder):
    (folder / TOWER).write_bytes((folder / TOWER).read_bytes()[:-1])
    return f"weight file {folder / TOWER} cannot be read"


def without_scales(folder):
    tensors = load_file(folder / TOWER)
    name = next(name for name in tensors if name.endswith(SCALE))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / TOWER)
    return f"cannot load the model in {folder}"


def without_a_layer(folder):
    tensors = load_file(folder / TOWER)
    save_file({name: tensor for name, tensor in tensors.items() if ".layer.2." not in name}, folder / TOWER)
    return f"{folder} lacks "


@pytest.mark.parametrize("damage", [without_decoder, cut_short, without_scales, without_a_layer])
def test_a_damaged_folder_is_one_line(folder, damage):
    message = damage(folder)
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
