"""The models, prompts and methods that are measured: real architectures, sizes, and what is refused."""

import pytest
import torch
from questions import picture
from test_bench import chosen
from tiny_families import tiny

import methods
from harness.bench.probes import PROJECTORS
from harness.bench.setup import Candidate, subject
from harness.bench.workloads import grid_of, of_file, synthetic
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.models import FAMILIES, adapter_for
from harness.models.cost import architectures
from methods.budget import Budget

# Parameters of the released models: of Qwen's and LLaVA's as the Hub counts their weights, of the last from the sizes
# of its tensors: tower, patches, class, positions and norm, merger, 36 layers, last norm, embeddings and head.
PARAMETERS = {
    "qwen25vl7b": 8_292_166_656,
    "qwen25vl3b": 3_754_622_976,
    "llava15_7b": 7_063_427_072,
    "llavaov15_8b": 302_309_376
    + 602_112
    + (1024 + 32 + 2048)
    + (33_562_624 + 2048)
    + 6_946_071_552
    + 4096
    + 2 * 622_329_856,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_released_architecture_at_full_size(name):
    model = architectures.build(ModelConfig(name=name), tiny=False, device="meta", seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.model_type in PROJECTORS
    assert architectures.random_scorer(8, architectures.scorer_hidden(name), "cpu").in_features == 8
    for path in {*adapter_for(model).targets.values(), PROJECTORS[model.config.model_type]}:
        model.get_submodule(path)


def test_every_family_has_a_projector():
    assert set(PROJECTORS) == set(FAMILIES)


def test_sizes():
    assert grid_of(2691) == (1, 39, 69)  # a 1080p screen
    assert [h * w for _, h, w in map(grid_of, (576, 1024, 5000, 10000))] == [576, 1032, 4982, 9975]
    assert (grid_of("8x9"), grid_of("16x20x36"), grid_of(1)) == ((1, 8, 9), (16, 20, 36), (1, 1, 1))
    for wrong in ("8x", "0", "-3", "1x2x3x4", "x", 2.5, 0):
        with pytest.raises(UserError, match="sizes takes numbers"):
            grid_of(wrong)
    llava = synthetic(architectures.config_of("llava15_7b"), 2691, 64)
    assert (llava.name, llava.tokens) == ("24x24*5", 2880)


def test_the_words_around_an_image_are_no_special_tokens():
    config = architectures.config_of("qwen25vl3b", tiny=True)
    ids = synthetic(config, "2x3", 64).prepare(2)["input_ids"]
    assert ids.shape == (2, 70)
    special = ids[0] >= 151_643
    assert ids[0][special].tolist() == [151652, *[151655] * 6, 151653]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["weights=none"], "weights must be one of real, random, tiny"),
        (["repeats=0"], "repeats must be a whole number of at least 1, got 0"),
        (["batch=[1,0]"], "batch must be a whole number of at least 1, got 0"),
        (["batch=[]"], "nothing to measure"),
        (["keep=1.5"], "keep must be a number in"),
        (["keep=0.5", "tokens=8", "methods=[none]"], None),
        (["methods=[{lam:1}]"], "methods takes names, or"),
        (["images=[nothing.png]"], "no image at nothing.png"),
        (["model.dtype=int8"], "model.dtype must be one of"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(overrides, says):
    if says is None:
        assert chosen(*overrides).runs == []
        return
    with pytest.raises(UserError, match=says):
        chosen(*overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["model=qwen3vl8b", "weights=tiny"],
            "no architecture of model=qwen3vl8b is at hand: choose one of llava15_7b",
        ),
        (["model=llava15_7b", "weights=tiny", "methods=[resize]"], "every image becomes one size"),
        (["model=qwen25vl7b", "weights=tiny", "positions=compact"], "positions=compact does not fit family qwen2_5_vl"),
        (["model=qwen25vl7b", "weights=tiny", "methods=[idprune]"], "did you mean"),
        (["model=qwen25vl7b", "weights=tiny", "sizes=[big]"], "sizes takes numbers of visual tokens"),
    ],
)
def test_what_a_family_cannot_do_is_refused(overrides, says):
    with pytest.raises(UserError, match=says):
        subject(chosen(*overrides), print)


def test_all_methods_leaves_out_what_the_family_cannot_run():
    told = []
    it = subject(chosen("model=llava15_7b", "weights=tiny", "methods=all", "keep=0.5"), told.append)
    assert {one.name for one in it.candidates} == set(methods.names()) - {"resize"}
    assert len(told) == 1
    assert told[0].startswith("left out: resize makes images smaller")


def test_sizes_depend_on_what_the_model_is_for():
    assert (
        chosen("model=qwen25vl7b").sizes
        == chosen("model=qwen25vl7b", "weights=random").sizes
        == [576, 1024, 2691, 5000, 10000]
    )
    assert chosen("model=pocket").sizes == chosen("model=qwen25vl7b", "weights=tiny").sizes == [64, 256, 576, 1024]


def test_labels():
    method = methods.load("fastv", layer=2)
    assert Candidate("fastv", "layer=2", method, Budget(tokens=64)).label == "fastv layer=2 64tok"
    assert Candidate("none").label == "unpruned"


def test_a_file_in_tiles_has_the_grids_that_the_model_sees(tmp_path):
    file = tmp_path / "wide.png"
    picture(140, 112).save(file)
    model, processor = tiny("llava_next", torch.float32)
    prompt = of_file(str(file), "What is it?", processor, None, model.config)
    assert prompt.grids == [(1, 4, 4), (1, 6, 8)]
    inputs = prompt.prepare(2)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 2 * (prompt.tokens + 6)  # and newlines
