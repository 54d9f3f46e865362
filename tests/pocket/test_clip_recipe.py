"""The third pocket model's training code: what its hand-set heads note, and which tokens a batch may lose."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from harness.pocket import WEIGHTS
from harness.pocket.clips import KINDS
from harness.pocket.recipe.batches import Encoded
from harness.pocket.recipe.decoder import forward
from harness.pocket.recipe.video import NEW_WORDS, ClipPocket
from harness.pocket.scenes import Question, dense_targets

HEAD = 3  # <|im_start|> user <|vision_start|>
ASKED = [Question("times", "How many times does the red circle appear last?", "1")]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    pocket = ClipPocket(tmp_path_factory.mktemp("work"), "cpu")
    pocket.begin_decoder()
    return pocket


def encoded(pocket, kind, seed=1):
    scene = KINDS[kind](np.random.default_rng(seed))
    named = pocket.model.get_input_embeddings().weight[pocket.label_rows].detach()
    words = torch.from_numpy(dense_targets(scene, pocket.labels))
    return Encoded(0.6 * words @ named + pocket.words["<|image_pad|>"], pocket.grid(scene), ASKED, interval=2)


@torch.no_grad()
def notes(pocket, item, name):
    """What layer 0 notes on each visual token."""
    streams = []
    hook = pocket.decoder.layers[0].register_forward_hook(lambda m, a, out: streams.append(out))
    forward(pocket, pocket.pack([(item, item.questions)]))
    hook.remove()
    count = len(item.features if item.kept is None else item.kept)
    return streams[0].reshape(-1, streams[0].shape[-1])[HEAD : HEAD + count].float() @ pocket.notes[name]


@pytest.mark.parametrize(
    ("kind", "name", "axis", "sign"), [("times", "early", 0, -1), ("places", "row", 1, 1), ("places", "column", 2, 1)]
)
def test_visual_tokens_know_their_step_row_and_column_however_many_there_are(pocket, kind, name, axis, sign):
    item = encoded(pocket, kind)
    whole = notes(pocket, item, name)
    along = whole.view(item.grid).movedim(axis, 0).flatten(1)
    assert bool((sign * along.mean(1).diff() > 3 * along.std(1).max()).all())
    item.kept = torch.arange(0, len(whole), 5)
    few = notes(pocket, item, name)
    torch.testing.assert_close(few, whole[item.kept], atol=0.02, rtol=0)


def test_what_a_batch_loses_is_never_what_happens(pocket):
    rng, item = np.random.default_rng(0), encoded(pocket, "times")
    shown = (item.features @ pocket.colors.T).amax(1) > 0.25
    drawn = [pocket.vary(item, rng) for _ in range(20)]
    thinned = [one.kept for one in drawn if one.kept is not None]
    assert 4 <= len(thinned) <= 16
    assert min(map(len, thinned)) < len(shown) / 2
    assert all(set(shown.nonzero().flatten().tolist()) <= set(kept.tolist()) for kept in thinned)
    assert item.kept is None


def test_steps_that_repeat_are_encoded_once_and_alike(pocket):
    scenes = [KINDS["turns"](np.random.default_rng(seed)) for seed in range(2)]
    with torch.no_grad():
        for once, each in zip(pocket.encode_once(scenes), pocket.encode(scenes), strict=True):
            torch.testing.assert_close(once, each, atol=0.02, rtol=0)


def test_new_words_are_one_token_and_the_others_stay(pocket):
    tokens = pocket.tokenizer.tokenize("How many times does the last cell turn, turns?")
    assert [token.strip() for token in tokens if token.strip() in NEW_WORDS] == [
        "times",
        "last",
        "cell",
        "turn",
        "turns",
    ]
    before = AutoTokenizer.from_pretrained(WEIGHTS)
    text = "Is the red circle before the blue star?"
    assert pocket.tokenizer(text)["input_ids"] == before(text)["input_ids"]


def test_a_question_about_a_video_lies_where_this_or_an_older_transformers_puts_it(pocket):
    scene = KINDS["order"](np.random.default_rng(1))
    content = [{"type": "video"}, {"type": "text", "text": ASKED[0].text}]
    prompt = pocket.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = pocket.processor(text=[prompt], videos=[scene.frames], return_tensors="pt", do_sample_frames=False)
    stock, _ = pocket.model.model.get_rope_index(
        inputs.input_ids,
        mm_token_type_ids=inputs.mm_token_type_ids,
        video_grid_thw=inputs.video_grid_thw,
        second_per_grid_ts=torch.tensor([1.0]),
    )
    count = inputs.input_ids.shape[1]
    item = pocket.asked(encoded(pocket, "order"))
    placed = [pocket.pack([(replace(item, short=short), ASKED)])["position_ids"] for short in (True, False)]
    assert not torch.equal(*placed)
    assert any(torch.equal(positions[:, :, :count], stock) for positions in placed)
