"""Counted operations are those that torch counts while tiny models of every family run, pruned and unpruned."""

import pytest
import torch
from probes import Stages
from reference_prune import inputs_of
from tiny_families import tiny
from tiny_models import DINOV2, LLAVA_TOWERS, SIGLIP, tiny_llava
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

import methods
from harness.bench.probes import PROJECTORS
from harness.bench.workloads import synthetic
from harness.core.config import ModelConfig
from harness.models import adapter_class
from harness.models.cost import architectures, count
from harness.models.cost.decoder import DecoderShape, Rows
from harness.models.cost.selection import FORMULAS, Case, selection_flops
from harness.models.cost.vision import IN_CROPS, QwenVision, vision_shape
from harness.prune import prune
from methods.budget import Budget
from methods.tokens import num_tokens

TEXT, NEW = 24, 4
# 9 x 6: windows of 4 with an edge of 1 and 2
SIZES = {"qwen25vl7b": "9x6", "qwen2vl7b": "9x6", "llava15_7b": 128, "llavaov15_8b": "5x8"}


def attention(query, key, value, *args, **kwargs):
    return sdpa_flop_count(query, key, value)


# The counter of torch 2.6 leaves fused attention on the CPU out; its own formula for other devices fits.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
UNCOUNTED = {} if CPU_ATTENTION in flop_registry else {CPU_ATTENTION: attention}


@pytest.fixture(scope="module", params=SIZES)
def counted(request):
    return tiny_model(request.param, "sdpa")


def tiny_model(name, attn):
    about = ModelConfig(name=name, dtype="float32", attn=attn)
    model = architectures.build(about, tiny=True, device="cpu", seed=0)
    return model, synthetic(model.config, SIZES[name], TEXT)


def prefill(model, inputs):
    """Operations of every module on a prompt."""
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        model(**inputs, use_cache=True, logits_to_keep=1)
    name = type(model).__name__
    return {module.removeprefix(f"{name}."): sum(ops.values()) for module, ops in counter.get_flop_counts().items()}


def answer(model, inputs, tokens):
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return counter.get_total_flops()


def check_language_model(model, inputs, found):
    modules, head = prefill(model, inputs), DecoderShape.of(model.config).head
    assert modules["lm_head"] == head
    assert found.prefill - head == pytest.approx(modules["model.language_model"], rel=0.01)
    steps = answer(model, inputs, NEW) - answer(model, inputs, 1)
    assert found.decode - (NEW - 1) * head == pytest.approx(steps - (NEW - 1) * head, rel=0.01)
    return modules


@pytest.mark.parametrize("name", SIZES)
def test_fused_attention_is_counted_as_its_matrix_products_are(name):
    (fused, workload), (eager, _) = (tiny_model(name, attn) for attn in ("sdpa", "eager"))
    counts, products = (prefill(model, workload.prepare(1)) for model in (fused, eager))
    parts = ["lm_head", "model.language_model", "model.vision_tower" if name.startswith("llava15") else "model.visual"]
    assert [counts[part] for part in parts] == [products[part] for part in parts]


def test_every_stage_of_the_unpruned_model(counted):
    model, workload = counted
    found = count(model.config, workload.grids, TEXT, new_tokens=NEW)
    modules = check_language_model(model, workload.prepare(1), found)
    llava = model.config.model_type == "llava"
    tower = modules["model.vision_tower"] if llava else modules["model.visual"] - modules["model.visual.merger"]
    assert found.vit == pytest.approx(tower, rel=0.01)
    assert found.projector == pytest.approx(modules[PROJECTORS[model.config.model_type]], rel=0.01)
    assert found.total == pytest.approx(answer(model, workload.prepare(1), NEW), rel=0.01)


@pytest.mark.parametrize(
    ("tower", "more"), [(SIGLIP, {}), (DINOV2, {}), (DINOV2, {"use_swiglu_ffn": True, "mlp_ratio": 4})]
)
def test_other_towers_of_llava(monkeypatch, tower, more):
    monkeypatch.setitem(LLAVA_TOWERS, tower, LLAVA_TOWERS[tower] | more)
    model = tiny_llava(tower=tower)
    workload = synthetic(model.config, 16, TEXT)
    assert workload.grids == [(1, 4, 4)]  # though DINOv2 has 7 x 7 positions
    found, inputs = count(model.config, workload.grids, TEXT), workload.prepare(1)
    modules = prefill(model, inputs)
    assert found.vit == pytest.approx(modules["model.vision_tower"], rel=0.01)
    assert found.projector == modules["model.multi_modal_projector"]
    chosen = methods.load("visionzip")
    signals = count(model.config, workload.grids, TEXT, chosen, Budget(keep=0.25)).signals
    with prune(model, chosen, keep=0.25):
        assert signals == prefill(model, inputs)["model.vision_tower"] - modules["model.vision_tower"]


@pytest.mark.parametrize("family", IN_CROPS)
@pytest.mark.parametrize(("method", "rule"), [("uniform", "drop"), ("uniform", "keep"), ("fastv", "drop")])
def test_a_picture_in_crops(family, method, rule):
    model, processor = tiny(family, torch.float32)
    inputs = inputs_of(processor, ["one image"])  # of 112 x 140 pixels
    packing = adapter_class(family).packing(model.config, 112, 140)
    ends = packing.placeholders.rows - num_tokens(packing.grids)
    text = inputs["input_ids"].shape[1] - packing.placeholders.rows
    given = {"crops": packing.crops, "newlines": (ends, ends if rule == "keep" else 0), "new_tokens": NEW}
    plain = count(model.config, packing.grids, text, **given)
    modules = check_language_model(model, inputs, plain)
    assert plain.vit == pytest.approx(modules["model.vision_tower"], rel=0.01)
    assert plain.projector == pytest.approx(modules["model.multi_modal_projector"], rel=0.01)
    chosen = methods.load(method)
    found = count(model.config, packing.grids, text, chosen, Budget(per_tile=3), **given)
    with prune(model, chosen, per_tile=3, newlines=rule):
        check_language_model(model, inputs, found)
    assert found.prefill < plain.prefill
    with pytest.raises(ValueError, match=f"operations of {family} are counted only where the number of crops is known"):
        count(model.config, packing.grids, text)


@pytest.mark.parametrize(
    "chosen",
    [methods.load("uniform"), methods.load("fastv"), methods.load("fastv", variant="paper"), Stages(layers=(-1, 0, 1))],
    ids=["in front", "behind layer 1", "inside layer 0", "three times"],
)
def test_the_language_model_of_a_pruned_prompt(counted, chosen):
    model, workload = counted
    found = count(model.config, workload.grids, TEXT, chosen, Budget(keep=0.25), NEW)
    with prune(model, chosen, keep=0.25):
        check_language_model(model, workload.prepare(1), found)
    assert found.prefill < count(model.config, workload.grids, TEXT).prefill


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_reading_the_tower(counted, variant):
    model, workload = counted
    chosen = methods.load("scope", variant=variant)
    with prune(model, chosen, keep=0.25):
        modules = prefill(model, workload.prepare(1))
    plain = prefill(model, workload.prepare(1))
    tower = "model.vision_tower" if model.config.model_type == "llava" else "model.visual"
    found = count(model.config, workload.grids, TEXT, chosen, Budget(keep=0.25)).signals
    assert found == pytest.approx(modules[tower] - plain[tower], rel=0.01)


def test_a_resized_image_costs_what_a_small_one_does():
    config = architectures.config_of("qwen25vl7b")
    small = count(config, [(1, 6, 8)], TEXT)
    assert count(config, [(1, 12, 16)], TEXT, methods.load("resize"), Budget(keep=0.25)) == small


def test_windows_of_the_released_tower():
    tower = vision_shape(architectures.config_of("qwen25vl7b"))
    assert isinstance(tower, QwenVision)
    assert (tower.side, tower.full, tower.depth) == (4, 4, 32)
    assert tower._windows(9, 6) == [64, 32, 64, 32, 16, 8]


def test_the_formula_that_peers_quote():
    shape = DecoderShape(layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, mlp=11008, vocabulary=32000)
    layer = 4 * 640 * 4096**2 + 2 * 640**2 * 4096 + 2 * 640 * 4096 * 11008
    small = 4 * 208 * 4096**2 + 2 * 208**2 * 4096 + 2 * 208 * 4096 * 11008
    assert shape.paper_style([Rows(0, 640)]) == 32 * layer
    assert shape.paper_style([Rows(0, 640), Rows(2, 208)]) == 2 * layer + 30 * small


def test_every_built_in_method_has_a_formula_that_grows_with_the_image():
    assert set(FORMULAS) == set(methods.names())
    for name in FORMULAS:
        method = methods.load(name, **({"prior": "none"} if name == "d2pruner" else {}))
        small, large = (
            selection_flops(Case(method, n, n // 4, 3584, n + 64, 3584, 512, 80, [(1, n // 32, 32)], 1280))
            for n in (512, 2048)
        )
        assert small <= large
        assert (small == 0) == (large == 0)
    case = Case(methods.load("idpruner"), 2691, 673, 3584, 2755, 3584, 512, 80, [(1, 39, 69)], 1280)
    assert selection_flops(case) == 2 * 673 * 2691 * 3584


def test_what_is_not_known_is_not_made_up():
    class Strange:
        name = "strange"

    assert selection_flops(Case(Strange(), 8, 2, 4, 12, 4, 4, 4, [(1, 2, 4)], 4)) is None
    with pytest.raises(ValueError, match="not for internvl"):
        vision_shape(type("Config", (), {"model_type": "internvl", "vision_config": None, "get_text_config": _text}))


def _text():
    return type("Text", (), {"hidden_size": 4})
