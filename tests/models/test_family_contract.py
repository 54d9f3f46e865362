"""Every method on every family under every kernel, from pixels to an answer: exactly K tokens of each sample."""

import pytest
import torch
from attention_kernels import with_kernel
from PIL import Image
from reference_prune import generate, inputs_of
from tiny_families import BUILDERS, variants

import harness
import methods
from harness.evaluation.resize_baseline import resizing
from harness.models import FAMILIES, adapter_class
from harness.models.preprocessing import PixelLimits
from methods.budget import Budget


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
