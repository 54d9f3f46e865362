"""Signals of the CLIP tower and of the question, against the maps that the model itself returns in eager attention."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from reference_prune import generate, inputs_of
from tiny_models import tiny_llava, tiny_llava_processor

import harness
from harness.models import adapter_for
from harness.pocket.recipe.vocab import CHAT_TEMPLATE, build_tokenizer
from methods.base import OFFICIAL, PAPER, AttentionSpec, Method, Selection, Signal

DEPTH = 6
LAST, MIDDLE = 4, {"official": 2, "paper": 2}
NAMES = ["one image", "adjacent", "text between"]  # of 1, 3 and 2 images


@dataclass(kw_only=True)
class Watch(Method):
    """Keep the first K and remember what came."""

    needs = frozenset({Signal.VIT_ATTENTION, Signal.VIT_KEYS})

    wanted: Any = None
    seen: list[Any] = field(default_factory=list)

    @property
    def attention_spec(self):
        return self.wanted

    def _select(self, tokens, k, generator):
        self.seen.append(tokens)
        return Selection(torch.arange(k))


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_processor()


@pytest.fixture(scope="module")
def towers():
    """The same weights with the kernel under test, and in float64 with maps."""
    return tiny_llava(depth=DEPTH), tiny_llava(depth=DEPTH, dtype=torch.float64, attn="eager")


def maps_and_keys(model, inputs, layer):
    """The map [images, H, T, T] of a layer, and head-mean keys [images, T, d], as the model computes them."""
    keys, attention = [], model.model.vision_tower.encoder.layers[layer].self_attn
    handle = attention.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
    tower = model.model.vision_tower(inputs["pixel_values"].double(), output_attentions=True)
    handle.remove()
    return tower.attentions[layer].double(), keys[0].unflatten(-1, (2, -1)).mean(2)


def received(attention, wanted):
    """Scores [N] from maps, image by image."""
    if not wanted.cls_key:
        attention = attention[..., 1:] / attention[..., 1:].sum(-1, keepdim=True)
    rows = attention[:, :, :1] if wanted.queries == "cls" else attention
    return rows.mean(1).sum(1)[:, -16:].flatten()


@pytest.mark.parametrize(
    "wanted", [OFFICIAL, PAPER, AttentionSpec(queries="all"), AttentionSpec(queries="all", cls_key=False)], ids=range(4)
)
@pytest.mark.parametrize("how", ["forward", "generate", "beams"])
@torch.no_grad()
def test_attention_and_keys_of_a_batch(towers, processor, wanted, how):
    model, reference = towers
    wanted = AttentionSpec(("last", "middle"), wanted.queries, wanted.cls_key, 4, wanted.numbering)
    watch, inputs = Watch(wanted=wanted), inputs_of(processor, NAMES)
    with harness.prune(model, watch, keep=0.5):
        if how == "forward":
            model(**inputs)
        else:
            generate(model, inputs, max_new_tokens=2, num_beams=3 if how == "beams" else 1)
    assert len(watch.seen) == len(NAMES)
    for name, tokens in zip(NAMES, watch.seen, strict=True):
        single = inputs_of(processor, [name])
        last, keys = maps_and_keys(reference, single, LAST)
        middle, _ = maps_and_keys(reference, single, MIDDLE[wanted.numbering])
        for role, attention in (("last", last), ("middle", middle)):
            expected = received(attention, wanted).float()
            torch.testing.assert_close(tokens.vit_attention[role], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokens.vit_keys, keys[:, 1:].flatten(0, 1).float(), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_features_are_the_output_of_the_layer_last(towers, processor):
    model, inputs = tiny_llava(depth=DEPTH), inputs_of(processor, ["one image"])
    for late in model.model.vision_tower.encoder.layers[LAST + 1 :]:
        late.mlp.fc2.weight.fill_(torch.nan)
    watch = Watch(wanted=OFFICIAL)
    with harness.prune(model, watch, keep=0.5):
        model(**inputs)
    states = towers[0].model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    features = towers[0].model.multi_modal_projector(states[-2][:, 1:])
    torch.testing.assert_close(watch.seen[0].features, features[0])


def test_layers_as_published():
    model = tiny_llava()
    model.config.vision_config.num_hidden_layers = 24
    tower = adapter_for(model).tower
    assert tower.layer("last", "official") == tower.layer("last", "paper") == 22
    assert [tower.layer("middle", numbering) for numbering in ("official", "paper")] == [8, 9]


@torch.no_grad()
def test_the_tower_keeps_its_answer(processor):
    model, inputs = tiny_llava(depth=DEPTH), inputs_of(processor, ["one image"])
    plain = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
    with harness.prune(model, Watch(wanted=OFFICIAL), keep=0.5):
        again = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
    assert torch.equal(plain, again)


# What Llama's tokenizer makes of these words.
BOS, IMAGE, BREAK, SPACE = 1, 5, 13, 29871
SYSTEM = [319, 13563, 29889]  # "A chat."
USER, ASSISTANT = [3148, 1001, 29901], [319, 1799, 9047, 13566, 29901]
WHAT = [1724, 338, 372, 29973]  # "What is it?"
PROMPTS = {
    "image first": ([BOS, *USER, IMAGE, IMAGE, BREAK, *WHAT, *ASSISTANT], WHAT),
    "with spaces": ([BOS, *USER, SPACE, IMAGE, SPACE, BREAK, *WHAT, *ASSISTANT], WHAT),
    "image last": ([BOS, *USER, *WHAT, IMAGE, *ASSISTANT], WHAT),
    "two images": ([BOS, *USER, IMAGE, BREAK, IMAGE, BREAK, *WHAT, BREAK, *WHAT, *ASSISTANT], [*WHAT, BREAK, *WHAT]),
    "system prompt": ([BOS, *SYSTEM, *USER, IMAGE, BREAK, *WHAT, *ASSISTANT], WHAT),
    "later turns": ([BOS, *USER, IMAGE, BREAK, *WHAT, *ASSISTANT, 3869, 2, 11889, 29901, *WHAT, *ASSISTANT], WHAT),
    "earlier turns": ([BOS, *USER, *SYSTEM, *ASSISTANT, 3869, 2, *USER, IMAGE, BREAK, *WHAT, *ASSISTANT], WHAT),
    "no template": ([BOS, *WHAT, IMAGE, BREAK, *WHAT], WHAT + WHAT),
    "no question": ([BOS, *USER, IMAGE, BREAK, *ASSISTANT], []),
}


class TestQuestion:
    @pytest.mark.parametrize("padding", [([0, 0], []), ([], [0, 0])])
    @pytest.mark.parametrize("name", PROMPTS)
    def test_vicuna(self, name, padding):
        model = tiny_llava(text="llama")
        model.config.image_token_index = IMAGE
        for config in (model.config.text_config, model.generation_config):
            config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS, 2, 0
        prompt, words = PROMPTS[name]
        ids = torch.tensor(padding[0] + prompt + padding[1])
        rows = adapter_for(model).question(ids, (ids == IMAGE).int())
        assert ids[rows].tolist() == words

    def test_qwens_template_as_the_pocket_model_has_it(self):
        tokenizer = build_tokenizer()
        model = tiny_llava(text="qwen2")
        to_id = tokenizer.convert_tokens_to_ids
        model.config.image_token_index = to_id("<|image_pad|>")
        for config in (model.config.text_config, model.generation_config):
            config.eos_token_id, config.pad_token_id = to_id("<|im_end|>"), to_id("<|endoftext|>")
        content = [{"type": "image"}, {"type": "text", "text": "What color is the star ?"}]
        turns = [{"role": "user", "content": content}]
        prompt = tokenizer.apply_chat_template(
            turns, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
        )
        prompt = "<|endoftext|>" * 3 + prompt.replace("<|image_pad|>", "<|image_pad|>" * 16)
        ids = torch.tensor(tokenizer(prompt)["input_ids"])
        rows = adapter_for(model).question(ids, (ids == model.config.image_token_id).int())
        assert tokenizer.decode(ids[rows]).strip() == "What color is the star ?"
