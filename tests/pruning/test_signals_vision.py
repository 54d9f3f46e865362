"""Signals of the vision tower and of the question, against what the model itself computes, read off by other means."""

import pytest
import torch
from probes import Watch
from reference_prune import SAMPLES, generate, hooks, inputs_of
from tiny_models import IMAGE, tiny_qwen
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

import harness
from harness.models import adapter_for
from harness.models.qwen25vl import Qwen25VL
from methods.base import PAPER, AttentionSpec, Method

DEPTH, FULL = 4, (1, 3)
NEVER = 10**9
LAST, MIDDLE = 3, {"official": 1, "paper": 2}


@pytest.fixture(scope="module")
def tower():
    """A model whose vision layers note q, k and their maps; its middle layers of both numberings attend in windows."""
    model, notes = tiny_qwen(depth=DEPTH, fullatt_block_indexes=list(FULL)), {}

    def spy(module, query, key, value, *args, **kwargs):
        output, weights = eager_attention_forward(module, query, key, value, *args, **kwargs)
        notes.setdefault(id(module), []).append((query[0], key[0], weights[0]))
        return output, weights

    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    model.model.visual.config._attn_implementation = "spy"
    return model, notes


def window_order(grids):
    """Tokens of each step in the order of its windows of 2 x 2 tokens (56 pixels), row by row; naive."""
    order, start = [], 0
    for t, h, w in grids:
        for step in range(t):
            for top in range(0, h, 2):
                for left in range(0, w, 2):
                    for y in range(top, min(top + 2, h)):
                        order += [start + (step * h + y) * w + x for x in range(left, min(left + 2, w))]
        start += t * h * w
    return order


def reference(model, notes, inputs, layer, shortcut=NEVER):
    """Scores [N] and keys [N, d] of one pass per kind, dense and in float64, {kind: (scores, keys, maps agree)}."""
    found, module = {}, model.model.visual.blocks[layer].attn
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels not in inputs:
            continue
        notes.clear()
        model.model.visual(inputs[pixels], inputs[f"{kind}_grid_thw"])
        chunks = notes[id(module)]
        q, k = (torch.cat([chunk[part] for chunk in chunks], dim=1).double() for part in (0, 1))
        grids = [(t, h // 2, w // 2) for t, h, w in inputs[f"{kind}_grid_thw"].tolist()]
        scores, keys, start = [], [], 0
        for t, h, w in grids:
            for _ in range(t):
                unit = slice(start, start + 4 * h * w)
                start = unit.stop
                queries = q[:, unit] if 4 * h * w < shortcut else q[:, unit].mean(1, keepdim=True)
                maps = (queries @ k[:, unit].mT * module.scaling).softmax(-1)
                scores += maps.mean(0).sum(0).view(-1, 4).sum(1).tolist()
                keys += k[:, unit].mean(0).view(h * w, 4, -1).mean(1)
        order = window_order(grids)
        place = [order.index(token) for token in range(len(order))]
        found[kind] = torch.tensor(scores)[place], torch.stack(keys)[place].float()
        if layer in FULL and shortcut == NEVER:  # then the model's own maps are those of whole units
            own = torch.cat([chunk[2].double().mean(0).sum(0) for chunk in chunks]).view(-1, 4).sum(1)
            torch.testing.assert_close(own[place].float(), torch.tensor(scores)[place].float(), atol=1e-4, rtol=1e-4)
    return found


def expected(model, notes, processor, name, layer):
    """Scores and keys of one sample in the order of its placeholders."""
    inputs = inputs_of(processor, [name])
    found = reference(model, notes, inputs, layer)
    rows = {kind: iter(zip(*read, strict=True)) for kind, read in found.items()}
    ids = {model.config.image_token_id: "image", model.config.video_token_id: "video"}
    both = [next(rows[ids[token]]) for token in inputs["input_ids"][0].tolist() if token in ids]
    scores, keys = zip(*both, strict=True)
    return torch.stack(scores), torch.stack(keys)


def close(tokens, role, reference):
    torch.testing.assert_close(tokens.vit_attention[role], reference[0].float(), atol=1e-5, rtol=1e-5)


class TestVisionTower:
    @pytest.mark.parametrize("variant", ["official", "paper"])
    @pytest.mark.parametrize("name", SAMPLES)
    @torch.no_grad()
    def test_attention_and_keys(self, tower, processor, name, variant):
        model, notes = tower
        watch = Watch(variant=variant)
        with harness.prune(model, watch, keep=0.5):
            model(**inputs_of(processor, [name]))
        (tokens,) = watch.seen
        last = expected(model, notes, processor, name, LAST)
        close(tokens, "last", last)
        close(tokens, "middle", expected(model, notes, processor, name, MIDDLE[variant]))
        torch.testing.assert_close(tokens.vit_keys, last[1], atol=1e-5, rtol=1e-5)
        assert tokens.vit_attention["last"].sum() == pytest.approx(4 * len(tokens.features), rel=1e-4)

    @pytest.mark.parametrize("how", ["forward", "generate", "beams"])
    @torch.no_grad()
    def test_in_a_batch_each_sample_gets_its_own(self, tower, processor, how):
        model, notes = tower
        names, watch = ["mixed", "one image", "video", "adjacent"], Watch()
        inputs = inputs_of(processor, names)
        with harness.prune(model, watch, keep=0.5):
            if how == "forward":
                model(**inputs)
            else:
                generate(model, inputs, max_new_tokens=2, num_beams=3 if how == "beams" else 1)
        assert len(watch.seen) == len(names)
        for name, tokens in zip(names, watch.seen, strict=True):
            last = expected(model, notes, processor, name, LAST)
            close(tokens, "last", last)
            torch.testing.assert_close(tokens.vit_keys, last[1], atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_paper_shortcut(self, tower, processor):
        model, notes = tower
        watch = Watch(wanted=AttentionSpec(cls_key=False, mean_query_from=64))
        inputs = inputs_of(processor, ["adjacent"])  # of 16, 48 and 24 patches
        large = inputs_of(processor, ["one image"])  # of 80
        with harness.prune(model, watch, keep=0.5):
            model(**inputs)
            model(**large)
        for tokens, some in zip(watch.seen, (inputs, large), strict=True):
            close(tokens, "last", reference(model, notes, some, LAST, shortcut=64)["image"])
        assert watch.seen[1].vit_attention["last"].sum() == pytest.approx(1)
        assert set(watch.seen[1].vit_attention) == {"last"}

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @torch.no_grad()
    def test_the_model_keeps_its_kernel_and_its_answer(self, processor, attn):
        model, inputs = tiny_qwen(attn=attn, depth=DEPTH), inputs_of(processor, ["mixed"])
        before, plain = hooks(model), model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])
        with harness.prune(model, Watch(), keep=0.5):
            again = model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])
        assert torch.equal(plain.pooler_output, again.pooler_output)
        assert hooks(model) == before

    @torch.no_grad()
    def test_half_precision(self, processor):
        model, watch = tiny_qwen(dtype=torch.bfloat16, depth=DEPTH), Watch()
        with harness.prune(model, watch, keep=0.5):
            model(**inputs_of(processor, ["mixed"]))
        assert watch.seen[0].vit_attention["last"].dtype == torch.float32

    def test_layers_scale_with_the_tower(self):
        def layers(depth):
            tower = adapter_for(tiny_qwen(depth=depth)).tower
            return [tower.layer("last", "paper"), tower.layer("middle", "official"), tower.layer("middle", "paper")]

        assert layers(4) == [3, 1, 2]
        assert layers(2) == [1, 0, 1]
        model = tiny_qwen()
        model.config.vision_config.depth = 32
        assert [adapter_for(model).tower.layer(*which) for which in (("last", "paper"), ("middle", "official"))] == [
            31,
            15,
        ]
        assert adapter_for(model).tower.layer("middle", "paper") == 16

    @torch.no_grad()
    def test_what_was_encoded_elsewhere_cannot_be_read(self, tower, processor):
        model, _ = tower
        inputs = inputs_of(processor, ["one image"])
        grids = {"image_grid_thw": inputs["image_grid_thw"]}
        outside = model.model.get_image_features(inputs.pop("pixel_values"), **grids, return_dict=True)
        with pytest.raises(ValueError, match="outside the prune block"), harness.prune(model, Watch(), keep=0.5):
            model(**inputs, mm_encoder_outputs={"image": outside})
        with pytest.raises(ValueError, match="pass pixels"), harness.prune(model, Watch(), keep=0.5):
            model(**inputs)

    def test_a_layer_that_does_not_run_its_projection(self, processor, monkeypatch):
        model = tiny_qwen(depth=DEPTH)
        block = model.model.visual.blocks[LAST]
        monkeypatch.setattr(block, "forward", lambda states, **kwargs: states)
        with pytest.raises(RuntimeError, match=r"layer 3 of 'model\.visual'"), harness.prune(model, Watch(), keep=0.5):
            model(**inputs_of(processor, ["one image"]))

    @torch.no_grad()
    def test_nothing_is_read_where_all_stays_or_nobody_asks(self, processor, monkeypatch):
        model, inputs = tiny_qwen(), inputs_of(processor, ["one image"])
        monkeypatch.setattr("harness.models.vision_tower.received", lambda *args: pytest.fail("attention was computed"))
        with harness.prune(model, Watch(), keep=1.0):
            model(**inputs)
        with harness.prune(model, "uniform", keep=0.5):
            model(**inputs)

    def test_defaults_of_methods(self):
        assert Method().attention_spec == AttentionSpec()
        assert Watch(variant="paper", wanted=PAPER).attention_spec.mean_query_from == 6144


SYSTEM = "<|im_start|>system\nYou help.<|im_end|>\n"
TURN = "<|im_start|>user\n{}<|im_end|>\n"
ASK = "<|im_start|>assistant\n"
PROMPTS = {
    "image first": (SYSTEM + TURN.format(f"{IMAGE}What is it?") + ASK, "What is it?"),
    "text first": (SYSTEM + TURN.format(f"What is\nthis {IMAGE}") + ASK, "What is\nthis "),
    "around": (SYSTEM + TURN.format(f"a {IMAGE} b\n {IMAGE} c?") + ASK, "a  b\n  c?"),
    "no system prompt": (TURN.format(f"{IMAGE}user\nuser?") + ASK, "user\nuser?"),
    "nothing to answer": (TURN.format(f"{IMAGE}why?"), "why?"),
    "earlier turns": (SYSTEM + TURN.format("hi") + ASK + "yes<|im_end|>\n" + TURN.format(f"{IMAGE}so?") + ASK, "so?"),
    "later turns": (SYSTEM + TURN.format(f"{IMAGE}so?") + ASK + "yes<|im_end|>\n" + TURN.format("hm") + ASK, "so?"),
    "no template": (f"see {IMAGE} what?", "see  what?"),
    "no question": (SYSTEM + TURN.format(IMAGE) + ASK, ""),
    "pocket template": (f"<|im_start|>u{IMAGE} Is it?<|im_end|><|im_start|>a", " Is it?"),
}


class TestQuestion:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("name", PROMPTS)
    @torch.no_grad()
    def test_words_of_the_turn(self, model, processor, name, side):
        text, question = PROMPTS[name]
        images, watch = [(56, 84)] * text.count(IMAGE), Watch()
        longer = ("x" * 200 + IMAGE, [(56, 84)], [])
        with harness.prune(model, watch, keep=0.5):
            model(**inputs_of(processor, [(text, images, []), longer], side))
        ids = processor.tokenizer(question, return_tensors="pt")["input_ids"].long()
        assert torch.equal(watch.seen[0].text, model.get_input_embeddings()(ids)[0])
        assert len(watch.seen[1].text) == 200

    def test_padding_that_ends_turns_as_in_the_released_models(self, model, processor):
        adapter = Qwen25VL(model)
        model.generation_config.eos_token_id, before = (
            [*map(processor.tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|endoftext|>"))],
            model.generation_config.eos_token_id,
        )
        try:
            for text, question in PROMPTS.values():
                images = [(56, 84)] * text.count(IMAGE)
                ids = inputs_of(processor, [(text, images, []), ("x" * 200 + IMAGE, [(56, 84)], [])])["input_ids"][0]
                rows = adapter.question(ids, (ids == model.config.image_token_id).int())
                assert processor.tokenizer.decode(ids[rows]) == question
        finally:
            model.generation_config.eos_token_id = before
