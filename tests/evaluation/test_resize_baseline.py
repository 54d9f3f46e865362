"""`resize` shows smaller images: the rule, the pixels, and the proof that the model saw them."""

from fractions import Fraction
from math import lcm

import pytest
import torch
from hypothesis import strategies as st
from properties import randomized
from questions import LIMITS, ask, clip, picture

import harness
import methods
from harness.evaluation.resize_baseline import resizing
from harness.models.llavaov15.adapter import LlavaOnevision15
from harness.models.preprocessing import to_inputs
from harness.models.qwen25vl import Qwen25VL
from methods.base import Tokens
from methods.budget import Budget
from methods.resize import smaller

GRIDS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)


def count(grids):
    return sum(t * h * w for t, h, w in grids)


def naive(grids, k):
    """Try every scale at which anything can change, from 1 down."""
    denominator = 2 * lcm(*(side for _, h, w in grids for side in (h, w)))
    for step in range(denominator, -1, -1):
        scale = Fraction(step, denominator)
        shown = [(t, *(max(1, int(scale * side + Fraction(1, 2))) for side in (h, w))) for t, h, w in grids]
        if count(shown) <= k or step == 0:
            return shown


@randomized(40, grids=GRIDS, share=st.floats(0, 1))
def test_the_rule(grids, share):
    k = max(1, round(share * count(grids)))
    shown = smaller(grids, k)
    assert shown == naive(grids, k)
    assert count(shown) <= k or all((h, w) == (1, 1) for _, h, w in shown)
    assert smaller(grids[::-1], k) == shown[::-1]  # each image is treated like every other


@pytest.mark.parametrize(
    ("grids", "k", "shown"),
    [
        ([(1, 16, 16)], 64, [(1, 8, 8)]),
        ([(1, 16, 16)], 26, [(1, 5, 5)]),
        ([(1, 6, 10)], 15, [(1, 3, 5)]),
        ([(1, 12, 9)], 27, [(1, 6, 4)]),  # 6 x 5 were too many
        ([(4, 4, 4), (1, 8, 8)], 32, [(4, 2, 2), (1, 4, 4)]),
        ([(1, 4, 4)], 16, [(1, 4, 4)]),
        ([(8, 3, 3)], 5, [(8, 1, 1)]),  # no time step goes
        ([], 1, []),
    ],
)
def test_examples(grids, k, shown):
    assert smaller(grids, k) == shown


def test_images_and_frames_are_resized_once_from_their_own_pixels(processor):
    image, frames = picture(150, 100), [picture(120, 90, seed=i) for i in range(4)]
    inputs = to_inputs(processor, [ask(image, frames)], LIMITS, grids=[(1, 2, 3), (2, 1, 2)])
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert inputs["video_grid_thw"].tolist() == [[2, 2, 4]]
    by_hand = processor.image_processor(images=[image.resize((84, 56))], do_resize=False, return_tensors="pt")
    assert inputs["pixel_values"].equal(by_hand["pixel_values"])
    first = processor.image_processor(images=[frames[0].resize((56, 28))], do_resize=False, return_tensors="pt")
    patches = inputs["pixel_values_videos"].view(2, -1, 3, 2, 196)[0, :, :, 0]  # of the first time step's first frame
    assert patches.allclose(first["pixel_values"].view(-1, 3, 2, 196)[:, :, 0], atol=1e-6)


@pytest.mark.parametrize("reader", ["decord", "PyAV"])
def test_files_of_videos_are_made_smaller_like_lists(processor, tmp_path, reader, monkeypatch):
    if reader == "PyAV":
        monkeypatch.setattr("harness.models.videos.find_spec", lambda name: None)
    else:
        pytest.importorskip("decord")
    images = clip(tmp_path / "clip.mp4", 8)
    file = to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], LIMITS, grids=[(2, 1, 1)])
    shown = to_inputs(processor, [ask([images[i] for i in (0, 2, 5, 7)])], LIMITS, grids=[(2, 1, 1)])
    assert file["video_grid_thw"].tolist() == [[2, 2, 2]]
    assert [float(seconds) for seconds in file["second_per_grid_ts"]] == [1.0]
    assert file["pixel_values_videos"].allclose(shown["pixel_values_videos"], atol=0.2)


@torch.no_grad()
def test_what_the_model_saw_is_recorded_beside_the_budget(model, processor):
    asked = [ask(picture(112, 112), picture(56, 112)), ask([picture(112, 112)] * 4), ask(text="no picture")]
    with resizing(model, Budget(keep=0.25)) as block:
        inputs = block.inputs(processor, asked, LIMITS)
        model(**inputs)
        records = block.take()
    assert [(record.n, record.budget, record.k) for record in records] == [(24, 6, 6), (32, 8, 8), (0, 0, 0)]
    assert records[0].grids == [(1, 4, 4), (1, 4, 2)]
    assert records[0].shown == [(1, 2, 2), (1, 2, 1)]
    assert int((inputs["input_ids"][0] == model.config.image_token_id).sum()) == 6


@torch.no_grad()
def test_a_batch_within_the_budget_is_the_plain_one(model, processor):
    asked = [ask(picture(112, 112))]
    with resizing(model, Budget(tokens=16)) as block:
        inputs = block.inputs(processor, asked, LIMITS)
        model(**inputs)
        assert [(record.n, record.k) for record in block.take()] == [(16, 16)]
    plain = to_inputs(processor, asked, LIMITS)
    assert all(torch.equal(inputs[key], plain[key]) for key in plain)


@torch.no_grad()
def test_a_resize_that_silently_did_nothing_is_caught(model, processor, monkeypatch):
    asked = [ask(picture(112, 112))]
    with resizing(model, Budget(keep=0.25)) as block:
        block.inputs(processor, asked, LIMITS)
        model(**to_inputs(processor, asked, LIMITS))
        with pytest.raises(RuntimeError, match=r"in grids \[\[\(1, 2, 2\)\]\], the model saw \[\[\(1, 4, 4\)\]\]"):
            block.take()


def test_prune_says_that_it_cannot(model):
    with (
        pytest.raises(
            ValueError, match=r"resize makes images smaller before the model gets them; prune\(\) cannot do that: run"
        ),
        harness.prune(model, "resize", keep=0.25),
    ):
        pass
    tokens = Tokens(torch.rand(4, 2), [(1, 2, 2)])
    with pytest.raises(ValueError, match="cannot choose among them"):
        methods.load("resize").select(tokens, 2)


def test_a_family_of_one_resolution_refuses_it(monkeypatch):
    monkeypatch.setattr(Qwen25VL, "fixed_size", "every image becomes 336 x 336 pixels")
    assert Qwen25VL.refusal(methods.load("resize")) == (
        "resize makes images smaller, which saves no tokens in family qwen2_5_vl: every image becomes 336 x 336 pixels"
    )
    assert Qwen25VL.refusal(methods.load("random")) is None


def test_there_is_nothing_to_renumber():
    LlavaOnevision15.check_positions("keep", methods.load("resize"))
    with pytest.raises(ValueError, match=r'compact renumbers .* removes no tokens afterwards; pass positions="keep"'):
        LlavaOnevision15.check_positions("compact", methods.load("resize"))
