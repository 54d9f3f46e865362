"""Where `prune` takes the scorer from, and where it runs."""

from pathlib import Path

import pytest
from accelerate import cpu_offload
from reference_prune import generate, inputs_of
from safetensors.torch import load_file, save_file
from tiny_models import HIDDEN, tiny_folder, tiny_qwen
from torch import nn

import harness
from harness.models.scorer import VisionSelectorScorer, save_scorer


def test_a_model_brings_its_scorer(tmp_path, processor, scorer):
    folder = tiny_folder(tmp_path)
    model = type(tiny_qwen()).from_pretrained(folder)
    with pytest.raises(ValueError, match="needs a trained scorer"), harness.prune(model, "visionselector", keep=0.5):
        pass
    save_scorer(scorer, folder / "scorer")
    inputs = inputs_of(processor, ["mixed"])
    with harness.prune(model, "visionselector", keep=0.5) as found:
        generate(model, inputs)
    with harness.prune(model, "visionselector", keep=0.5, scorer=scorer) as given:
        generate(model, inputs)
    assert found.records == given.records


def kept(model, inputs, **kwargs):
    with harness.prune(model, "visionselector", keep=0.5, **kwargs) as pruning:
        generate(model, inputs)
    return pruning.records


@pytest.mark.parametrize("kind", [str, Path])
def test_a_released_folder(tmp_path, model, processor, scorer, kind):
    save_scorer(scorer, tmp_path / "selector")
    inputs = inputs_of(processor, ["mixed", "one image"])
    assert kept(model, inputs, scorer=kind(tmp_path / "selector")) == kept(model, inputs, scorer=scorer)
    with harness.prune(model, "uniform", keep=0.5) as pruning:
        generate(model, inputs)
    assert pruning.records != kept(model, inputs, scorer=scorer)


def test_a_whole_checkpoint_with_the_tensors_of_a_scorer(tmp_path, model, processor, scorer):
    folder = tiny_folder(tmp_path)
    mine = {f"visual.importance_scorer.{name}": tensor for name, tensor in scorer.state_dict().items()}
    save_file(load_file(folder / "model.safetensors") | mine, folder / "model.safetensors", {"format": "pt"})
    inputs = inputs_of(processor, ["mixed"])
    expected = kept(model, inputs, scorer=scorer)
    assert kept(model, inputs, scorer=folder) == expected
    assert kept(type(model).from_pretrained(folder), inputs) == expected


def test_parameters_of_the_model_may_be_elsewhere(tmp_path, processor, scorer):
    """Offloading leaves the parameters of a model on the device "meta" while it rests."""
    save_scorer(scorer, tmp_path)
    inputs = inputs_of(processor, ["mixed"])
    expected = kept(tiny_qwen(), inputs, scorer=tmp_path)
    offloaded = cpu_offload(tiny_qwen())
    assert next(offloaded.parameters()).device.type == "meta"
    assert kept(offloaded, inputs, scorer=tmp_path) == expected


@pytest.mark.parametrize("kind", [lambda: VisionSelectorScorer(HIDDEN, 8), lambda: nn.Linear(HIDDEN, 1)])
def test_a_module_on_another_device_is_refused_and_not_moved(model, processor, kind):
    scorer = kind().to("meta")
    with pytest.raises(ValueError, match=r"the scorer is on meta, the visual tokens on cpu: pass scorer.to"):
        kept(model, inputs_of(processor, ["mixed"]), scorer=scorer)
    assert {parameter.device.type for parameter in scorer.parameters()} == {"meta"}
