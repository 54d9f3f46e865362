"""Every method on every family, from pixels to an answer: exactly K tokens of each sample, whatever it reads."""

import pytest
import torch
from gathered import generate, inputs_of
from PIL import Image
from tiny import tiny_llava, tiny_llava_processor, tiny_processor, tiny_qwen
from tiny_internvl import tiny_internvl, tiny_internvl_processor
from tiny_qwen3 import tiny_qwen3, tiny_qwen3_processor

import harness
import methods
from harness.inputs import PixelLimits
from harness.models import adapter_class
from harness.resize import resizing
from methods.budget import Budget

BUILDERS = {
    "qwen2_5_vl": (lambda: tiny_qwen(layers=4, depth=4), tiny_processor),
    "llava": (lambda: tiny_llava(layers=4, depth=4), tiny_llava_processor),
    "qwen3_vl": (tiny_qwen3, tiny_qwen3_processor),
    "internvl": (tiny_internvl, tiny_internvl_processor),
}


@pytest.fixture(scope="module", params=BUILDERS)
def family(request):
    build, process = BUILDERS[request.param]
    return build(), process()


@pytest.mark.parametrize("name", sorted(set(methods.BUILT_IN) - {"none", "resize"}))
@torch.no_grad()
def test_every_method_keeps_exactly_k(family, scorer, name):
    model, processor = family
    inputs = inputs_of(processor, ["adjacent", "one image"])
    params = {"prior": "none"} if name == "d2pruner" else {}  # it warns without any
    with harness.prune(model, name, tokens=6, scorer=scorer, **params) as pruning:
        generate(model, inputs, max_new_tokens=2)
    assert [(record.k, len(set(record.kept))) for record in pruning.records] == [(6, 6), (6, 6)]
    assert all(0 <= min(record.kept) <= max(record.kept) < record.n for record in pruning.records)


@torch.no_grad()
def test_smaller_images_where_the_resolution_is_dynamic(family):
    model, processor = family
    resize, adapter = methods.load("resize"), adapter_class(model.config.model_type)
    if adapter.fixed_size:
        with pytest.raises(ValueError, match=f"saves no tokens in family {adapter.family}: "):
            adapter.check(resize, model.config)
        return
    side = 2 * processor.image_processor.patch_size  # pixels of a token
    image, frames = Image.new("RGB", (4 * side, 2 * side)), [Image.new("RGB", (2 * side, 2 * side))] * 4
    parts = [{"type": "image", "url": image}, {"type": "video", "url": frames}, {"type": "text", "text": "?"}]
    limits = PixelLimits(side**2, 64 * side**2, 4)
    with resizing(model, Budget(keep=0.25)) as block:
        model(**block.inputs(processor, [[{"role": "user", "content": parts}]], limits))
        (record,) = block.take()
    assert (record.grids, record.shown) == ([(1, 2, 4), (2, 2, 2)], [(1, 1, 2), (2, 1, 1)])
    assert (record.n, record.budget, record.k) == (16, 4, 4)
