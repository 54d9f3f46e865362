"""Gradient checkpointing repeats layers in the backward pass, after the pass that was pruned."""

import pytest
import torch
from reference_prune import inputs_of
from tiny_families import BUILDERS
from transformers_names import CACHE

import harness

REENTRANT = [True, False]


@pytest.fixture(params=BUILDERS)
def shown(request):
    """A model of each family that is trained, and a prompt with an image."""
    build, process = BUILDERS[request.param]
    model = build().train()
    model.enable_input_require_grads()
    return model, inputs_of(process(), ["one image"])


def gradients(model, inputs, method):
    """Return the gradient of each weight, from a loss on the logits of a pruned pass."""
    model.zero_grad()
    with harness.prune(model, method, keep=0.3):
        model(**inputs, use_cache=False, **{CACHE: None}).logits.square().mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("method", ["uniform", "hiprune", "cdpruner", "vispruner", "visionzip"])
def test_gradients_are_those_without_it(shown, method):
    model, inputs = shown
    expected = gradients(model, inputs, method)
    # LLaVA-OneVision-1.5 passes a parameter by keyword, which reentrant checkpointing does not take, pruned or not.
    for reentrant in [False] if model.config.model_type == "llavaonevision1_5" else REENTRANT:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        actual = gradients(model, inputs, method)
        assert {name for name in expected if "language_model" in name} <= set(actual)
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("reentrant", REENTRANT)
@pytest.mark.parametrize("method", ["fastv", "dart"])
def test_a_cut_inside_the_language_model_is_refused(shown, method, reentrant):
    model, inputs = shown
    assert gradients(model, inputs, method)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with pytest.raises(ValueError, match=r"would repeat layers without the cut: call model\.gradient_") as error:
        gradients(model, inputs, method)
    assert "\n" not in str(error.value)
    with torch.no_grad(), harness.prune(model, method, keep=0.3) as pruning:
        model(**inputs)  # nothing is repeated without gradients
    assert len(pruning.records) == 1
