"""The decoder's primed heads do what `recipe.attention_init` says, on visual tokens made of exactly the right words."""

import numpy as np
import pytest
import torch

from harness.pocket.recipe.attention_init import prime
from harness.pocket.recipe.batches import Encoded, pack
from harness.pocket.recipe.decoder import forward
from harness.pocket.recipe.learner import Pocket
from harness.pocket.scenes import KINDS, dense_targets
from harness.pocket.words import COLORS, OPTIONS, SHAPES

HEAD = 3  # <|im_start|> user <|vision_start|>


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    pocket = Pocket(tmp_path_factory.mktemp("work"), "cpu")
    prime(pocket.model.model.language_model, pocket.words, pocket.notes)
    return pocket


@torch.no_grad()
def residuals(pocket, kind, task, n):
    """(question, its words, where it starts, the item, residual streams after each layer [L, D]) of n scenes."""
    outputs = []
    layers = pocket.model.model.language_model.layers
    hooks = [layer.register_forward_hook(lambda m, a, out: outputs.append(out[0])) for layer in layers]
    table = pocket.model.get_input_embeddings()
    named = table.weight[pocket.label_rows]
    for seed in range(n):
        scene = KINDS[kind](np.random.default_rng([1, seed]))
        question = next((q for q in scene.questions if q.task == task), None)
        if question is None:
            continue
        width, height = scene.frames[0].size
        features = torch.from_numpy(dense_targets(scene, pocket.labels)) @ named * 0.5 + pocket.words["<|image_pad|>"]
        item = Encoded(features, (max(1, len(scene.frames) // 2), height // 28, width // 28), [question])
        outputs.clear()
        forward(pocket, pack([(item, [question])], pocket.tokenizer, table))
        words = pocket.tokenizer.convert_ids_to_tokens(pocket.tokenizer(question.text)["input_ids"])
        streams = [out[0] if out.dim() == 3 else out for out in outputs]
        yield question, words, HEAD + len(features) + 1, item, streams
    for hook in hooks:
        hook.remove()


def test_a_word_finds_what_its_like_in_the_picture_carries(pocket):
    right = []
    for question, words, start, _, streams in residuals(pocket, "objects", "attribute_text", 30):
        place = max(i for i, word in enumerate(words) if word[1:] in (*COLORS, *SHAPES))
        options = list(COLORS) if "color" in question.text else list(SHAPES)
        found = streams[1][start + place] @ torch.stack([pocket.words[w] for w in options]).T
        right.append(options[int(found.argmax())] == question.answer)
    assert np.mean(right) >= 0.8


def test_a_word_knows_the_word_before_it_and_its_option(pocket):
    notes = torch.stack([pocket.notes[f"option {letter}"] for letter in OPTIONS])
    seen = []
    for _, words, start, _, streams in residuals(pocket, "video", "video", 5):
        for i, word in enumerate(words):
            if word[1:] in SHAPES:
                stream = streams[0][start + i]
                before = {name: float(stream @ pocket.notes[f"before {name}"]) for name in COLORS}
                assert max(before, key=before.get) == words[i - 1][1:]
                seen.append(OPTIONS[int((notes @ stream).argmax())])
    assert seen
    assert seen == ["A", "B"] * (len(seen) // 2)


def test_counts_grow_with_what_is_there(pocket):
    amounts = {}
    for question, words, start, _, streams in residuals(pocket, "counting", "counting", 60):
        if question.text.startswith("How many") and words[2][1:] not in COLORS:
            amounts.setdefault(int(question.answer), []).append(float(streams[1][start + 2] @ pocket.notes["count"]))
    means = [np.mean(amounts[n]) for n in sorted(amounts)]
    assert len(means) >= 4
    assert means == sorted(means)


def test_visual_tokens_know_how_early_they_are(pocket):
    for _, _, start, item, streams in residuals(pocket, "video", "video", 5):
        early = (streams[0][HEAD : start - 1] @ pocket.notes["early"]).view(item.grid[0], -1).mean(1)
        assert bool((early.diff() < 0).all())
