"""Every method on every family, from pixels to an answer: exactly K tokens of each sample, whatever it reads."""

import pytest
import torch
from gathered import generate, inputs_of
from tiny import tiny_llava, tiny_llava_processor, tiny_processor, tiny_qwen
from tiny_internvl import tiny_internvl, tiny_internvl_processor
from tiny_qwen3 import tiny_qwen3, tiny_qwen3_processor

import harness
import methods

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


@pytest.mark.parametrize("name", sorted(set(methods.BUILT_IN) - {"none"}))
@torch.no_grad()
def test_every_method_keeps_exactly_k(family, scorer, name):
    model, processor = family
    inputs = inputs_of(processor, ["adjacent", "one image"])
    params = {"prior": "none"} if name == "d2pruner" else {}  # it warns without any
    with harness.prune(model, name, tokens=6, scorer=scorer, **params) as pruning:
        generate(model, inputs, max_new_tokens=2)
    assert [(record.k, len(set(record.kept))) for record in pruning.records] == [(6, 6), (6, 6)]
    assert all(0 <= min(record.kept) <= max(record.kept) < record.n for record in pruning.records)
