"""A model larger than one GPU: pruned where its parts lie on several devices, it keeps and answers the same."""

import shutil
from itertools import cycle

import pytest
import torch
from accelerate import dispatch_model
from composed_sweeps import composed
from fake_devices import pretended_devices
from reference_prune import generate, inputs_of
from safetensors.torch import load_file, save_file
from tiny_internvl import tiny_internvl, tiny_internvl_processor
from tiny_models import HIDDEN, tiny_folder, tiny_llava, tiny_llava_processor, tiny_processor, tiny_qwen
from tiny_qwen2 import tiny_qwen2, tiny_qwen2_processor
from tiny_qwen3 import tiny_qwen3, tiny_qwen3_processor

import harness
from harness.core import distributed
from harness.core.config import ModelConfig
from harness.core.distributed import Processes
from harness.core.errors import UserError
from harness.evaluation import identity
from harness.models import loading
from harness.models.model_folder import ModelFolder
from harness.models.scorer import VisionSelectorScorer, save_scorer

BUILDERS = {
    "qwen2_5_vl": (lambda: tiny_qwen(attn="eager", layers=4, depth=4), tiny_processor),
    "llava": (lambda: tiny_llava(attn="eager", layers=4, depth=4), tiny_llava_processor),
    "qwen2_vl": (lambda: tiny_qwen2(attn="eager"), tiny_qwen2_processor),
    "qwen3_vl": (lambda: tiny_qwen3(attn="eager"), tiny_qwen3_processor),
    "internvl": (lambda: tiny_internvl(attn="eager"), tiny_internvl_processor),
}
# In front of the language model, with what the vision tower shows, behind a decoder layer, merging, with a scorer
METHODS = ("random", "hiprune", "cdpruner", "fastv", "dart", "visionzip", "idpruner")


def spread(model, devices) -> dict[str, str]:
    """Every block of the model on the next of the devices, what stands between them on the first."""
    places, turn, blocks = {}, cycle(reversed(devices)), set(model._no_split_modules or ())

    def visit(module, name):
        block = type(module).__name__ in blocks
        if block or not list(module.children()) or list(module.parameters(recurse=False)):
            if list(module.parameters()) or list(module.buffers()):
                places[name] = next(turn) if block else devices[0]
            return
        for child, part in module.named_children():
            visit(part, f"{name}.{child}".removeprefix("."))

    visit(model, "")
    return places


def answered(model, inputs, scorer) -> dict:
    found = {"none": (generate(model, inputs, max_new_tokens=3), None)}
    for method in METHODS:
        with harness.prune(model, method, keep=0.5, scorer=scorer) as pruning:
            found[method] = (generate(model, inputs, max_new_tokens=3), pruning.take())
    return found


@pytest.fixture(params=BUILDERS)
def family(request, tmp_path):
    """A model, inputs, a scorer's folder, and what it answers on one device."""
    build, process = BUILDERS[request.param]
    model, inputs = build(), inputs_of(process(), ["adjacent", "one image"])
    torch.manual_seed(0)
    save_scorer(VisionSelectorScorer(HIDDEN, 8, init_scale=0.3), tmp_path / "scorer")
    return model, inputs, tmp_path / "scorer", answered(model, inputs, tmp_path / "scorer")


@torch.no_grad()
def test_on_two_devices(family):
    model, inputs, scorer, expected = family
    with pretended_devices():
        dispatch_model(model, spread(model, ["cpu:1", "cpu:2"]), skip_keys=model._skip_keys_device_placement)
        assert answered(model, inputs.to("cpu:1"), scorer) == expected


@torch.no_grad()
def test_partly_on_disk(family, tmp_path):
    model, inputs, scorer, expected = family
    places = spread(model, ["cpu", "disk"])
    dispatch_model(model, places, offload_dir=tmp_path / "parts", skip_keys=model._skip_keys_device_placement)
    assert answered(model, inputs, scorer) == expected


def test_devices_that_are_pretended_are_not_mixed_up():
    with pretended_devices():
        one, other = torch.arange(4, device="cpu:1"), torch.arange(4, device="cpu:2")
        assert (one.to("cpu:2") + other).tolist() == [0, 2, 4, 6]
        assert one[torch.tensor([1, 2])].tolist() == [1, 2]  # as on a GPU
        for mixed in (
            lambda: one + other,
            lambda: one + torch.arange(4),
            lambda: torch.cat([one, other]),
            lambda: torch.arange(4)[one],
            lambda: one.gather(0, torch.arange(4)),
            lambda: torch.equal(one, other),
        ):
            with pytest.raises(RuntimeError, match="cpu"):
                mixed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("spread"))


def config_of(folder, **more) -> ModelConfig:
    return ModelConfig(name="tiny", pretrained=str(folder), dtype="float32", **more)


@torch.no_grad()
def test_a_model_is_loaded_spread(folder, tmp_path, monkeypatch, processor):
    whole = loading.load(config_of(folder))
    plain, places = (
        loading.transformers.AutoModelForImageTextToText.from_pretrained,
        spread(whole.model, ["disk", "cpu"]),
    )

    def small(path, device_map, **more):
        assert device_map == "auto"  # of accelerate, as if this machine were too small
        return plain(path, device_map=places, offload_folder=str(tmp_path), **more)

    monkeypatch.setattr(loading.transformers.AutoModelForImageTextToText, "from_pretrained", small)
    loaded = loading.load(config_of(folder, device_map="auto"))
    assert loaded.model.device == torch.device("meta")  # what its first parameter says
    assert loaded.device == torch.device("cpu")
    inputs = inputs_of(processor, ["mixed"])
    assert generate(loaded.model, inputs.to(loaded.device)) == generate(whole.model, inputs)


@pytest.mark.parametrize(
    ("places", "expected"), [({"a": "cpu", "b": 1, "c": 0}, "cuda:1"), ({"": "cpu"}, "cpu"), ({"": 0}, "cuda:0")]
)
def test_inputs_go_to_the_first_gpu(places, expected):
    model = torch.nn.Linear(1, 1)
    model.hf_device_map = places
    assert loading.Loaded(model, None, None, None).device == torch.device(expected)


def test_a_folder_that_lacks_a_tensor_is_refused_when_spread_too(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("embed_tokens.weight"))]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="embed_tokens"):
        loading.load(config_of(broken, device_map="auto"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.device_map=everywhere"], "device_map must be null or one of auto"),
        (
            ["model.device_map=auto", "model.device=cpu"],
            "model.device_map=auto chooses devices: leave model.device=cpu",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, says):
    with pytest.raises(UserError, match=says):
        composed(*overrides)


def test_one_process_spreads_a_model(monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: Processes(0, 0, 2))
    with pytest.raises(UserError, match="auto is one process, 2 were launched"):
        loading.device_of(ModelConfig(name="m", pretrained="m", device_map="auto"))


def test_every_kind_of_gpu_that_it_lies_on_is_in_the_key(folder, monkeypatch):
    run = composed(f"model.pretrained={folder}", "model.device_map=auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: ["small", "large", "small"][gpu])
    assert identity.Identity(run, ModelFolder(folder)).model["device"] == "large, small"
