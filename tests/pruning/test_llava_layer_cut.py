"""Cuts between the decoder layers of LLaVA-1.5, with its plain 1-D positions."""

import pytest
import torch
from attention_kernels import KERNELS, with_kernel
from reference_prune import GatheredFlatInside, generate, inputs_of
from test_layer_cut import LAYERS, Keys
from tiny_models import tiny_llava, tiny_llava_processor

import harness

NAMES = ["one image", "text between", "adjacent", "small image"]


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_processor()


@pytest.fixture(scope="module")
def deep():
    return tiny_llava(layers=LAYERS)


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("layer", [0, LAYERS - 2])
@torch.no_grad()
def test_batch_of_four_equals_one_by_one_and_the_reference(deep, processor, attn, layer):
    model = with_kernel(tiny_llava(layers=LAYERS), attn)
    with harness.prune(model, Keys(layer=layer, variant="paper"), keep=0.3) as pruning:
        answers = generate(model, inputs_of(processor, NAMES))
        records, single = pruning.take(), []
        for name in NAMES:
            single += generate(model, inputs_of(processor, [name]))
    assert pruning.records == records
    padding = model.generation_config.pad_token_id
    assert answers == [answer + [padding] * (len(answers[0]) - len(answer)) for answer in single]
    for answer, name, record in zip(single, NAMES, records, strict=True):
        reference = GatheredFlatInside.behind(deep, inputs_of(processor, [name]), record.kept, layer)
        assert answer == reference.answer(deep)


@torch.no_grad()
def test_right_padding_and_each_layers_cache(deep, processor):
    inputs = inputs_of(processor, NAMES[:2], side="right")
    with harness.prune(deep, Keys(), tokens=5) as pruning:
        out = deep(**inputs, use_cache=True)
    whole = inputs["input_ids"].shape[1]
    lengths = [len(layer.keys[0, 0]) for layer in out.past_key_values.layers]
    assert lengths[:2] == [whole, whole]
    assert lengths[2] == lengths[3] < whole
    for row, (name, record) in enumerate(zip(NAMES, pruning.records, strict=False)):
        expected = GatheredFlatInside.behind(deep, inputs_of(processor, [name]), record.kept, 1).logits(deep)[0]
        torch.testing.assert_close(out.logits[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_state_of_the_layer(processor, monkeypatch):
    model, states, choose = tiny_llava(attn="eager", layers=LAYERS), [], Keys._select
    monkeypatch.setattr(Keys, "_select", lambda *args: states.append(args[1].llm) or choose(*args))
    inputs = inputs_of(processor, ["one image"])
    with harness.prune(model, Keys(hidden="output"), keep=0.3):
        model(**inputs)
    out = model(**inputs, output_attentions=True, output_hidden_states=True)
    (state,) = states
    scores = state.q @ state.k.repeat_interleave(2, dim=0).mT / state.q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(scores.softmax(-1), out.attentions[1][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state.hidden, out.hidden_states[2][0], atol=1e-4, rtol=1e-4)
