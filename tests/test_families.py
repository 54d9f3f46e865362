"""Every method on every family under every kernel, from pixels to an answer: exactly K tokens of each sample."""

from typing import get_args, get_type_hints

import pytest
import torch
from attention_kernels import with_kernel
from gathered import generate, inputs_of
from PIL import Image
from plain_llavaov15 import llavaov15_processor, tiny_llavaov15
from tiny import tiny_llava, tiny_llava_processor, tiny_processor, tiny_qwen
from tiny_internvl import tiny_internvl, tiny_internvl_processor
from tiny_qwen3 import tiny_qwen3, tiny_qwen3_processor

import harness
import methods
from harness.evaluation.resize_baseline import resizing
from harness.models import FAMILIES, adapter_class
from harness.models.preprocessing import PixelLimits
from methods.budget import Budget

# In float64, where the rounding of kernels decides no choice between tokens.
BUILDERS = {
    "qwen2_5_vl": (lambda: tiny_qwen(torch.float64, layers=4, depth=4), tiny_processor),
    "llava": (lambda: tiny_llava(torch.float64, layers=4, depth=4), tiny_llava_processor),
    "llavaonevision1_5": (lambda: tiny_llavaov15(dtype=torch.float64, layers=4, depth=4), llavaov15_processor),
    "qwen3_vl": (lambda: tiny_qwen3(torch.float64), tiny_qwen3_processor),
    "internvl": (lambda: tiny_internvl(torch.float64), tiny_internvl_processor),
}


def variants():
    """Every method that cuts, and those that are not the same in the comparison a second time."""
    for name in sorted(set(methods.BUILT_IN) - {"none", "resize"}):
        hint = get_type_hints(methods.get(name)).get("variant")
        for params in [{"variant": variant} for variant in get_args(hint)] or [{}]:
            yield pytest.param(name, params, id="-".join([name, *params.values()]))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A model, its processor, a batch of two prompts, of which one is padded, and the other one alone."""
    build, process = BUILDERS[request.param]
    processor = process()
    return build(), processor, inputs_of(processor, ["adjacent", "one image"]), inputs_of(processor, ["adjacent"])


@pytest.mark.parametrize(("name", "params"), variants())
@torch.no_grad()
def test_every_method_keeps_exactly_k_whatever_the_kernel(family, scorer, name, params):
    model, _, both, first = family
    params = params | ({"prior": "none"} if name == "d2pruner" else {})  # it warns without any

    def under(attn, inputs, length=1):
        with harness.prune(with_kernel(model, attn), name, tokens=6, scorer=scorer, **params) as pruning:
            answers = generate(model, inputs, max_new_tokens=length)
        assert [(record.k, len(set(record.kept))) for record in pruning.records] == [(6, 6)] * len(answers)
        assert all(0 <= min(record.kept) <= max(record.kept) < record.n for record in pruning.records)
        return [(record, answer[0]) for record, answer in zip(pruning.records, answers, strict=True)]

    expected = under("sdpa", both, length=2)
    assert under("flash_like", both) == expected
    assert under("eager", first) == expected[:1]  # alone: its float32 softmax makes NaN of padding in float64


@torch.no_grad()
def test_smaller_images_where_the_resolution_is_dynamic(family):
    model, processor, *_ = family
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
    steps = 4 // processor.video_processor.temporal_patch_size
    assert (record.grids, record.shown) == ([(1, 2, 4), (steps, 2, 2)], [(1, 1, 2), (steps, 1, 1)])
    assert (record.n, record.budget, record.k) == (8 + 4 * steps, 2 + steps, 2 + steps)
