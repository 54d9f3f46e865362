"""A folder that cannot be loaded, a device that is not there and a scorer of another width are one line each."""

import shutil
from pathlib import Path

import pytest
import torch
from composed_sweeps import composed
from safetensors.torch import load_file, save_file
from tiny_models import HIDDEN, tiny_folder

from harness.core.config import ModelConfig, RunConfig
from harness.core.errors import UserError
from harness.evaluation import lmms_model
from harness.evaluation.pruner import check_scorer, checked_method, pruner_of
from harness.models import FAMILIES, loading
from harness.models.model_folder import ModelFolder
from harness.models.qwen25vl import Qwen25VL
from harness.models.scorer import VisionSelectorScorer, save_scorer
from methods.base import Signal


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("loading"))


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return shutil.copytree(pristine, tmp_path / "model")


def config_of(folder: Path, device: str = "cpu") -> ModelConfig:
    return ModelConfig(name="tiny", pretrained=str(folder), dtype="float32", device=device)


def run_of(folder: Path, *overrides: str) -> RunConfig:
    return composed(f"model.pretrained={folder}", *overrides)


def refused(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_a_whole_folder_loads(folder):
    loaded = loading.load(config_of(folder))
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert not loaded.model.training


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def first(weights: dict) -> str:
    return next(name for name in weights if name.endswith("embed_tokens.weight"))


def test_weights_that_do_not_fit_the_config_are_one_line(folder):
    edit_weights(folder, lambda weights: weights.update({first(weights): torch.zeros(512, HIDDEN + 8)}))
    said = refused(loading.load, config_of(folder))
    assert f"embed_tokens.weight is [512, {HIDDEN + 8}], expected [512, {HIDDEN}]" in said


def test_a_missing_tensor_is_named(folder):
    edit_weights(folder, lambda weights: weights.pop(first(weights)))
    assert "embed_tokens" in refused(loading.load, config_of(folder))


def test_an_unknown_architecture_is_one_line(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"qwen2_5_vl"', '"of_tomorrow"'))
    assert "of_tomorrow" in refused(loading.load, config_of(folder))


@pytest.mark.parametrize("raised", [RuntimeError("a\nb"), KeyError("a"), ImportError("a"), AttributeError("a")])
def test_whatever_transformers_raises_is_one_line(raised, folder, monkeypatch):
    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(loading.transformers.AutoModelForImageTextToText, "from_pretrained", fail)
    said = refused(loading.load, config_of(folder))
    assert said.startswith(f"cannot load the model in {folder}: {type(raised).__name__}: ")


@pytest.mark.parametrize("template", [None, "{% if %}"])
def test_a_processor_that_cannot_write_a_prompt_is_refused_before_the_weights(template, folder, monkeypatch):
    monkeypatch.setattr(loading.transformers.AutoModelForImageTextToText, "from_pretrained", None)
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.jinja").write_text(template)
    assert "chat_template.jinja" in refused(loading.load, config_of(folder))


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_a_device_that_is_there(device, gpus, expected, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert loading.device_of(config_of(folder, device)) == expected


@pytest.mark.parametrize(
    ("device", "gpus", "says"), [("cuda:99", 2, "2 GPU"), ("cuda:2", 2, "2 GPU"), ("cuda", 0, "no GPU")]
)
def test_a_device_that_is_not_there(device, gpus, says, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert says in refused(loading.device_of, config_of(folder, device))


def write_scorer(folder: Path, width: int) -> Path:
    save_scorer(VisionSelectorScorer(width, 8), folder / "scorer")
    return folder / "scorer"


def test_a_scorer_that_fits(folder):
    scorer = write_scorer(folder, HIDDEN)
    assert pruner_of(run_of(folder), ModelFolder(folder)).scorer == scorer


def test_a_scorer_of_another_width_is_refused_without_the_models_weights(folder):
    scorer = write_scorer(folder, HIDDEN + 1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"width {HIDDEN + 1}, this model's have {HIDDEN}"):
        check_scorer(scorer, ModelFolder(folder))
    assert f"width {HIDDEN + 1}" in refused(pruner_of, run_of(folder), ModelFolder(folder))


def test_a_scorer_that_lacks_a_part_is_refused_without_the_models_weights(folder):
    scorer = write_scorer(folder, HIDDEN)
    (folder / "model.safetensors").unlink()
    edit_weights(scorer, lambda weights: weights.pop("k_proj.bias"))
    run = run_of(folder, f"model.scorer={scorer}")
    assert "k_proj.bias" in refused(pruner_of, run, ModelFolder(folder))


def test_the_order_of_checks_from_flat_arguments(folder, monkeypatch):
    """lmms-eval's own command line has the scorer refused before the weights are loaded, too."""
    monkeypatch.setattr(loading.transformers.AutoModelForImageTextToText, "from_pretrained", None)
    write_scorer(folder, HIDDEN + 1)
    arguments = {"pretrained": str(folder), "method": "idpruner", "keep": 0.5, "device": "cpu"}
    assert "width" in refused(lmms_model.from_flat, arguments)


def test_a_method_that_the_family_cannot_run_is_refused_from_config_json_alone(folder, monkeypatch):
    monkeypatch.setattr(Qwen25VL, "supplies", frozenset({Signal.IMPORTANCE}))
    monkeypatch.setattr(Qwen25VL, "lacks", {Signal.VIT_KEYS: "it has no eyes"})
    (folder / "model.safetensors").unlink()  # whoever loads it fails
    said = refused(pruner_of, run_of(folder, "method=visionzip"), ModelFolder(folder))
    assert said.startswith("visionzip needs vit_attention, vit_keys, which family qwen2_5_vl cannot supply")
    assert said.endswith("(it has: importance; it has no eyes)")
    checked_method(run_of(folder, "method=divprune"), ModelFolder(folder))


def test_a_family_without_an_adapter_is_refused_from_config_json_alone(folder):
    (folder / "config.json").write_text('{"model_type": "glm4v"}')
    said = refused(checked_method, run_of(folder, "method=none"), ModelFolder(folder))
    assert said == f"no adapter for the model in {folder} (model_type 'glm4v'); supported families: " + ", ".join(
        FAMILIES
    )
