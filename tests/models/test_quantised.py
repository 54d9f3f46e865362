"""Quantised weights load or are refused in one line, before weights are fetched or read; their layers are hooked."""

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from reference_prune import inputs_of
from tiny_families import tiny
from tiny_models import tiny_folder
from torch import nn

import harness
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.evaluation.identity import Identity
from harness.models import checkpoint, loading, quantised
from harness.pruning import decoding_proof

BNB = {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": False}
INT8 = {**BNB, "load_in_8bit": True}
NF4 = {**BNB, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
KINDS = {"bitsandbytes int8": INT8, "bitsandbytes nf4": NF4, "awq": AWQ, "gptq": GPTQ}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("quantised"))


def folder_with(settings, pristine, tmp_path) -> Path:
    """Return the tiny checkpoint, whose config.json says that its weights are quantised."""
    for file in pristine.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return tmp_path


def config_of(folder, dtype="float32") -> ModelConfig:
    return ModelConfig(name="tiny", pretrained=str(folder), dtype=dtype, device="cpu")


def refused(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_whose_package_is_absent_is_refused(name, pristine, tmp_path, monkeypatch):
    settings = KINDS[name]
    if any(find_spec(package.replace("-", "_")) for package in quantised.packages_of(settings)):
        pytest.skip("its package is installed")
    folder = folder_with(settings, pristine, tmp_path)
    monkeypatch.setattr(loading, "load_processor", lambda folder: pytest.fail("read too early"))
    said = refused(checkpoint.check, config_of(folder))
    assert said.startswith(f"the weights in {folder} are quantised ({name}), which cannot be loaded here: ")
    assert "pip install" in said or "GPU is required" in said  # what transformers says of each
    assert refused(loading.load, config_of(folder)) == said


def test_weights_of_the_hub_are_refused_before_they_are_fetched(pristine, tmp_path, monkeypatch):
    folder = folder_with({"quant_method": "of tomorrow"}, pristine, tmp_path)

    def snapshot_download(repo, revision=None, allow_patterns=None):
        assert allow_patterns == ["config.json"], "weights were fetched"
        return folder

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.models.checkpoint._check_hub", lambda *args: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, **_: folder / name)
    model = ModelConfig(name="theirs", pretrained="some/repository")
    for call in (checkpoint.download, checkpoint.download_config):
        assert "quantised (of tomorrow), which this transformers does not know" in refused(call, model)


@pytest.mark.parametrize("settings", [[], "int8", {"bits": 4}])
def test_settings_without_a_method_are_refused(settings, pristine, tmp_path):
    folder = folder_with(settings or [1], pristine, tmp_path)
    assert "quantization_config without a quant_method" in refused(checkpoint.check, config_of(folder))


@pytest.fixture
def installed(monkeypatch):
    """Let transformers find bitsandbytes."""
    for module in ("8bit", "4bit"):
        for kind in vars(getattr(transformers.quantizers, f"quantizer_bnb_{module}")).values():
            if isinstance(kind, type) and "validate_environment" in vars(kind):
                monkeypatch.setattr(kind, "validate_environment", lambda self, *args, **kwargs: None)


def test_what_is_not_quantised_keeps_its_dtype(installed, pristine, tmp_path):
    """transformers converts nothing of such a checkpoint, and a run is known by the dtype that was asked for."""
    folder = folder_with(INT8, pristine, tmp_path)
    assert "are float32, and stay so: pass model.dtype=float32" in refused(
        checkpoint.check, config_of(folder, "float16")
    )
    assert checkpoint.check(config_of(folder)) == folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": None}))
    assert checkpoint.check(config_of(folder, "float16")) == folder
    model = SimpleNamespace(dtype=torch.float32)  # found out once it is loaded
    with pytest.MonkeyPatch.context() as patch:
        loaded = SimpleNamespace(eval=lambda: model), {"missing_keys": [], "mismatched_keys": []}
        patch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: loaded)
        assert "pass model.dtype=float32" in refused(loading.load, config_of(folder, "float16"))


@pytest.mark.parametrize("settings", [INT8, None])
def test_quantised_weights_are_loaded_where_they_stay(settings, installed, pristine, tmp_path, monkeypatch):
    folder = folder_with(settings, pristine, tmp_path) if settings else pristine
    asked = []

    def from_pretrained(folder, **options):
        asked.append(options.get("device_map"))
        raise OSError("far enough")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    assert "far enough" in refused(loading.load, config_of(folder))
    assert asked == [{"": "cpu"} if settings else None]


def test_the_package_of_quantised_weights_is_part_of_a_runs_identity():
    run = SimpleNamespace(model=SimpleNamespace(attn="sdpa"))
    plain, int8 = (Identity(run, SimpleNamespace(quantisation=settings)).packages for settings in (None, INT8))
    assert set(int8) - set(plain) == {"bitsandbytes"}


class Int8(nn.Module):
    """A linear layer with weights in int8, which is no nn.Linear: as those of AWQ and GPTQ."""

    def __init__(self, plain: nn.Linear):
        super().__init__()
        self.scale = plain.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (plain.weight / self.scale).round().to(torch.int8))
        self.bias = plain.bias

    @property
    def plain(self):
        return self.qweight * self.scale

    def forward(self, x):
        return nn.functional.linear(x, self.plain, self.bias)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
@pytest.mark.parametrize("method", ["fastv", "visionzip", "divprune"])  # of layers, of the tower, of features
def test_pruning_quantised_layers_is_pruning_what_their_weights_stand_for(family, method):
    shared, processor = tiny(family, torch.float32)
    one, other = copy.deepcopy(shared), copy.deepcopy(shared)
    with torch.no_grad():
        for name, module in list(one.named_modules()):
            if isinstance(module, nn.Linear) and "lm_head" not in name:
                layer = Int8(module)
                one.set_submodule(name, layer)
                other.get_submodule(name).weight.copy_(layer.plain)
    inputs = inputs_of(processor, ["one image"], "left")
    outcomes = []
    for model in (one, other):
        with torch.no_grad(), harness.prune(model, method=method, keep=0.5) as handle:
            outcomes.append((model(**inputs).logits, handle.records[-1].kept))
    assert outcomes[0][1] == outcomes[1][1]
    assert len(outcomes[0][1]) > 0
    assert torch.equal(outcomes[0][0], outcomes[1][0])


def test_int8_is_proved_at_the_tolerance_of_bfloat16(monkeypatch):
    """Inputs of its layers are rounded to 8 bits: of bitsandbytes 0.50.2, correct decoding deviates by up to 0.026."""
    shared, processor = tiny("qwen2_5_vl", torch.float32)
    model = copy.deepcopy(shared)
    inputs = inputs_of(processor, ["one image"], "left")
    with torch.no_grad(), harness.prune(model, method="uniform", keep=0.5) as handle:
        plain = decoding_proof.prove(model, inputs, handle.replaying, [])
        monkeypatch.setattr(model, "is_loaded_in_8bit", True, raising=False)
        int8 = decoding_proof.prove(model, inputs, handle.replaying, [])
    assert (plain.tolerance, int8.tolerance) == (1e-4, 1e-1)
