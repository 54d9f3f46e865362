"""The second pocket model's training code: its tower is the stock one, and starts as neighbourhoods."""

import numpy as np
import pytest
import torch

from harness.pocket.recipe.clip import COLUMNS, PLACES, LlavaPocket
from harness.pocket.scenes import KINDS, TOKEN

SCENES = ("objects", "text", "document")


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    pocket = LlavaPocket(tmp_path_factory.mktemp("work"), "cpu")
    pocket.autocast = torch.autocast("cpu", enabled=False)
    return pocket


@pytest.fixture(scope="module")
def scenes():
    return [KINDS[kind](np.random.default_rng(seed)) for seed, kind in enumerate(SCENES)]


@torch.no_grad()
def test_the_whole_square_gives_the_tokens_of_the_stock_model(pocket, scenes):
    mine = pocket.encode(scenes)
    pictures = pocket.processor.image_processor([s.frames[0] for s in scenes], return_tensors="pt").pixel_values
    stock = pocket.model.model
    stock.set_attn_implementation("sdpa")
    chosen = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    expected = stock.get_image_features(pictures, **chosen).pooler_output
    cls = stock.vision_tower(pictures).pooler_output
    stock.set_attn_implementation("packed_plain")
    torch.testing.assert_close(torch.stack(mine), torch.stack(list(expected)), atol=1e-5, rtol=1e-4)
    found = torch.stack([pocket.summaries[i] for i in range(len(scenes))])
    torch.testing.assert_close(found, cls, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_the_empty_rest_there_is_a_token_for_each_target(pocket, scenes):
    tokens = pocket.encode(scenes, whole=False)
    assert [len(part) for part in tokens] == [s.frames[0].width * s.frames[0].height // TOKEN**2 for s in scenes]
    assert len(pocket.targets(scenes, whole=False)) == sum(len(part) for part in tokens)
    square = pocket.targets(scenes).view(len(scenes), COLUMNS, COLUMNS, -1)
    columns, rows = (side // TOKEN for side in scenes[0].frames[0].size)
    assert square[0, rows:].sum() == square[0, :, columns:].sum() == 0
    assert torch.equal(square[0, :rows, :columns].flatten(0, 1), pocket.targets(scenes[:1], whole=False))


@torch.no_grad()
def test_heads_start_on_the_patch_beside(pocket):
    tower = pocket.vision["tower"]
    table = tower.embeddings.position_embedding.weight[1:]
    layer = tower.encoder.layers[0].self_attn
    place = 5 * COLUMNS + 7
    for head, (down, right) in enumerate(PLACES[0]):
        mine = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        q, k = (projection.weight[mine] @ table.T for projection in (layer.q_proj, layer.k_proj))
        assert int((q[:, place] @ k).argmax()) == place + down * COLUMNS + right


def test_the_decoder_starts_as_the_first_pocket_models(pocket):
    before = pocket.decoder.layers[0].mlp.up_proj.weight.clone()
    pocket.begin_decoder()
    assert not torch.equal(pocket.decoder.layers[0].mlp.up_proj.weight, before)
