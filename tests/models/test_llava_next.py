"""What is peculiar to LLaVA-NeXT under `prune`: crops, rows without patches, and newline rows."""

import re
from functools import partial

import pytest
import torch
from PIL import Image
from probes import Keys, Stages, Watch
from reference_prune import generate, inputs_of
from safetensors.torch import load_file, save_file
from tiny_families import tiny, variants
from tiny_llava_next import SIDE, tiny_llava_next, tiny_llava_next_processor
from tiny_models import IMAGE, LLAVA_TOWERS, SIGLIP, strategy_for, tiny_llava, tiny_tokenizer
from transformers import LlavaNextImageProcessor, LlavaNextProcessor
from uncached_reference import Cut, Prompt

import harness
import methods
from harness.core.config import ModelConfig
from harness.models import adapter_for, loading, vision_tower
from methods.base import Method, Selection, Signal

REAL, BASE = 336, 576  # pixels and patches of a crop in the released models


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_next_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_llava_next()


@pytest.fixture(scope="module")
def large():
    """A tiny model and inputs with the geometry of the released ones: an image of 500 x 700 pixels."""
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(size={"shortest_edge": REAL}, crop_size={"height": REAL, "width": REAL}),
        tiny_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
    )
    image = Image.effect_noise((700, 500), 90).convert("RGB")
    inputs = processor(text=[f"what is {IMAGE} it?"], images=[image], return_tensors="pt")
    return tiny_llava_next(side=REAL, layers=2, depth=2, max_position_embeddings=8192), inputs


class Brightest(Method):
    """Keep the tokens that receive most attention in the tower."""

    needs = frozenset({Signal.VIT_ATTENTION})

    def _select(self, tokens, k, generator):
        return Selection.of(tokens.vit_attention["last"].argsort(descending=True, stable=True)[:k])


class TestAnImageOf500x700:
    @torch.no_grad()
    def test_newline_rows_end_each_of_34_lines(self, large):
        model, inputs = large
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 2242
        prompt = Prompt.of(model, inputs)
        first = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
        assert (prompt.newlines - first).tolist() == [BASE + 49 * line - 1 for line in range(1, 35)]
        with harness.prune(model, "uniform", tokens=160) as pruning:
            (logits,) = model(**inputs).logits
        (record,) = pruning.records
        assert (record.n, record.k, record.newlines) == (2208, 160, (34, 0))
        assert record.grids == [(1, 24, 24), (1, 34, 48)]
        expected = prompt.logits(model, Cut(-1, torch.tensor(record.kept)))
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize(
        ("crop", "patch", "row"),
        [
            (0, 100, 100),
            (1, 7 * 24, BASE),  # the first line that is no padding
            (2, 7 * 24, BASE + 24),
            (3, 100, BASE + (28 - 7) * 48 + 4),
            (4, 16 * 24 + 23, BASE + 34 * 48 - 1),
        ],
    )
    @torch.no_grad()
    def test_the_score_of_a_patch_reaches_its_row(self, large, monkeypatch, crop, patch, row):
        self.raise_score(monkeypatch, crop, patch)
        model, inputs = large
        with harness.prune(model, Brightest(), tokens=1) as pruning:
            model(**inputs)
        assert pruning.records[0].kept == [row]

    @torch.no_grad()
    def test_a_patch_of_padding_has_a_score_and_no_row(self, large, monkeypatch):
        self.raise_score(monkeypatch, 1, 6 * 24 + 23)
        model, inputs = large
        with harness.prune(model, Brightest(), tokens=1) as pruning:
            model(**inputs)
        assert pruning.records[0].kept == [0]  # all others are equal

    def raise_score(self, monkeypatch, crop, patch):
        crops = iter(range(5))

        def scores(q, *_):
            values = torch.zeros(BASE)
            values[patch] += next(crops) == crop
            return values

        monkeypatch.setattr(vision_tower, "attention_received", scores)


class TestSignals:
    @pytest.mark.parametrize("tower", LLAVA_TOWERS)
    @torch.no_grad()
    def test_those_of_each_crop_are_packed_as_the_model_packs_features(self, tower):
        model, samples = tiny_llava_next(attn="eager", tower=tower), ["text between", "small image"]
        inputs, watch = inputs_of(tiny_llava_next_processor(tower), samples), Watch()
        cls = int(tower != SIGLIP)
        with harness.prune(model, watch, keep=0.5):
            generate(model, inputs)
        counts = [5, 4, 3]  # crops of each image
        pixels = torch.cat([image[:count] for image, count in zip(inputs["pixel_values"], counts, strict=True)])
        described = adapter_for(model).tower
        projection = model.get_submodule(described.paths(described.depth - 2)[1][1])  # of the features' layer
        keys = []
        handle = projection.register_forward_hook(lambda module, args, output: keys.append(output))
        passed = model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
        handle.remove()

        def packed(values):
            """Return what both prompts have of values [crops, cls + patches, D] of the tower's rows."""
            newline = torch.full(values.shape[-1:], torch.nan)
            parts, _ = model.model.pack_image_features(
                values[:, cls:].split(counts), inputs["image_sizes"], strategy_for(tower), newline
            )
            rows = [part[~part.isnan().any(-1)] for part in parts]
            return torch.cat(rows[:2]), rows[2]

        maps = passed.attentions[-2].mean(1)
        attention = (maps[:, 0] if cls else maps.sum(1)).unsqueeze(-1)  # received from CLS, or from all patches
        heads = keys[0].unflatten(-1, (2, 16)).mean(-2)
        for values, field in ((heads, "vit_keys"), (passed.hidden_states[-2], "vit_features")):
            for tokens, expected in zip(watch.seen, packed(values), strict=True):
                torch.testing.assert_close(getattr(tokens, field), expected, atol=1e-5, rtol=1e-4)
        for tokens, expected in zip(watch.seen, packed(attention), strict=True):
            torch.testing.assert_close(tokens.vit_attention["last"], expected[:, 0], atol=1e-6, rtol=1e-4)


class TestNewlines:
    @pytest.mark.parametrize("method", ["uniform", Keys(layer=1)], ids=str)
    @pytest.mark.parametrize("rule", ["drop", "keep", "follow"])
    @torch.no_grad()
    def test_what_stays(self, model, processor, rule, method):
        inputs = inputs_of(processor, ["one image"])
        prompt = Prompt.of(model, inputs)
        with harness.prune(model, method, tokens=5, newlines=rule) as pruning:
            (logits,) = model(**inputs).logits
        (record,) = pruning.records
        lines = {(index - SIDE**2) // 8 for index in record.kept if index >= SIDE**2}  # of 8 patches each
        assert 0 < len(lines) < 6
        stay = {"drop": [], "keep": range(6), "follow": sorted(lines)}[rule]
        assert record.newlines == (6, len(stay))
        rows = tuple(int(prompt.newlines[line]) for line in stay)
        cut = Cut(getattr(method, "layer", -1), torch.tensor(record.kept), newlines=rows)
        torch.testing.assert_close(logits, prompt.logits(model, cut), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("layers", [(0, 1, 2), (-1, 1, 2)])
    @pytest.mark.parametrize("rule", ["drop", "keep", "follow"])
    @torch.no_grad()
    def test_what_stays_after_three_cuts(self, model, processor, rule, layers):
        inputs, hidden = inputs_of(processor, ["one image"]), {"hidden": "output"} if layers[0] < 0 else {}
        prompt, cuts = Prompt.of(model, inputs), []
        with harness.prune(model, Stages(layers=layers, **hidden), tokens=7, newlines=rule) as pruning:
            (answer,) = generate(model, inputs)
        (record,) = pruning.records
        before, counts = list(range(record.n)), []
        for stage in record.stages:
            lines = sorted({(index - SIDE**2) // 8 for index in stage.kept if index >= SIDE**2})
            stay = {"drop": [], "keep": range(6), "follow": lines}[rule]
            kept = torch.tensor([before.index(index) for index in stage.kept])
            cuts.append(Cut(stage.layer, kept, newlines=tuple(int(prompt.newlines[line]) for line in stay)))
            before, counts = stage.kept, [*counts, len(stay)]
        assert len(set(counts)) > 1 or rule != "follow"
        assert record.newlines == (6, counts[-1])
        logits = prompt.logits(model, cuts, answer)
        assert logits[-len(answer) - 1 : -1].argmax(-1).tolist() == answer

    @torch.no_grad()
    def test_nothing_goes_where_every_patch_stays(self, model, processor):
        """In a batch with a prompt that is cut, too."""
        both, alone = inputs_of(processor, ["adjacent", "small image"]), inputs_of(processor, ["small image"])
        plain = model(**alone).logits[0]
        for method in ("visionzip", "fastv"):
            with harness.prune(model, method, tokens=40) as pruning:
                assert torch.equal(model(**alone).logits[0], plain)
                (_, last) = model(**both).logits
            assert [(record.n - record.k, record.newlines) for record in pruning.records] == [
                (0, (4, 4)),
                (pruning.records[1].n - 40, (pruning.records[1].newlines[0], 0)),
                (0, (4, 4)),
            ]
            torch.testing.assert_close(last[-len(plain) :], plain, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_a_decoding_step_after_newlines_went(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        prompt = Prompt.of(model, inputs)
        with harness.prune(model, "uniform", tokens=9, newlines="follow") as pruning:
            (answer,) = generate(model, inputs)
        lines = sorted({(index - SIDE**2) // 8 for index in pruning.records[0].kept if index >= SIDE**2})
        rows = tuple(int(prompt.newlines[line]) for line in lines)
        logits = prompt.logits(model, Cut(-1, torch.tensor(pruning.records[0].kept), newlines=rows), answer)
        assert logits[-len(answer) - 1 : -1].argmax(-1).tolist() == answer

    def test_rules_that_mean_nothing(self, model):
        with pytest.raises(ValueError, match="newlines must be one of drop, keep, follow, not 'some'"):
            harness.prune(model, "uniform", tokens=5, newlines="some")
        with pytest.raises(ValueError, match="newlines=keep does not fit family llava, which has no newline rows"):
            harness.prune(tiny_llava(), "uniform", tokens=5, newlines="keep")


class TestPerTile:
    @pytest.mark.parametrize(("name", "params"), variants())
    @torch.no_grad()
    def test_every_method_keeps_as_many_of_each_crop(self, scorer, name, params):
        model, processor = tiny("llava_next")
        method = methods.load(name, **params, **({"prior": "none"} if name == "d2pruner" else {}))
        inputs, many = inputs_of(processor, ["one image", "small image"]), 12 if method.stage == "layers" else 3
        with harness.prune(model, method, per_tile=many, scorer=scorer) as pruning:
            generate(model, inputs, max_new_tokens=2)
        for record, crops in zip(pruning.records, (5, 3), strict=True):
            assert sum(record.per_tile) == record.k == len(record.kept)
            if method.stage == "layers":  # as a mean over layers
                assert record.per_layer <= min(many * crops, record.n)
                assert max(record.per_tile) - min(record.per_tile) <= 1
            else:
                assert record.per_tile == [many] * crops

    @pytest.mark.parametrize("merges", [False, True])
    @torch.no_grad()
    def test_three_cuts(self, model, processor, merges):
        inputs, method = inputs_of(processor, ["one image"]), Stages(merges=merges, of_next=merges)
        prompt, cuts = Prompt.of(model, inputs), []
        with harness.prune(model, method, per_tile=2) as pruning:
            (answer,) = generate(model, inputs)
        (record,) = pruning.records
        assert record.per_tile == [2] * 5
        assert [len(stage.kept) for stage in record.stages] == [37, 23, 10]
        before = list(range(record.n))
        for stage in record.stages:
            (selection,) = pruning._asked[stage.layer][1]
            assert torch.equal(torch.tensor(before)[selection.kept], torch.tensor(stage.kept))
            cuts.append(Cut(stage.layer, selection.kept, mix=selection.mix))
            before = stage.kept
        logits = prompt.logits(model, cuts, answer)
        assert logits[-len(answer) - 1 : -1].argmax(-1).tolist() == answer


class TestTextModels:
    @pytest.mark.parametrize("text", ["mistral", "qwen2"])
    @pytest.mark.parametrize("method", ["uniform", Keys(layer=1), Keys(layer=1, variant="paper")], ids=str)
    @torch.no_grad()
    def test_logits(self, processor, text, method):
        options = {"sliding_window": None} if text == "mistral" else {}
        model, inputs = tiny_llava_next(text=text, **options), inputs_of(processor, ["text between"])
        with harness.prune(model, method, keep=0.3) as pruning:
            (logits,) = model(**inputs).logits
        cut = Cut(getattr(method, "layer", -1), torch.tensor(pruning.records[0].kept))
        torch.testing.assert_close(logits, Prompt.of(model, inputs).logits(model, cut), atol=1e-4, rtol=1e-4)

    def test_layers_that_attend_within_a_window(self):
        model = tiny_llava_next(text="mistral", sliding_window=128)
        with pytest.raises(ValueError, match=r"fastv cuts inside .*, whose layers attend within 128 tokens"):
            harness.prune(model, "fastv", keep=0.3)
        with harness.prune(model, "divprune", keep=0.3):
            pass

    def test_a_llama_that_is_no_vicuna(self):
        model = tiny_llava_next(vocab_size=64_064)
        with pytest.raises(ValueError, match="cdpruner reads the question: a Llama with 64064 ids is no Vicuna"):
            harness.prune(model, "cdpruner", keep=0.3)

    def test_the_question_in_prompts_of_mistral(self):
        bos, image, line, space = 1, 5, 13, 28705
        opening, closing = [733, 16289, 28793], [733, 28748, 16289, 28793]
        what = [1824, 349, 378, 28804]  # "What is it?"
        model = tiny_llava_next(text="mistral", sliding_window=None)
        model.config.image_token_index = image
        for config in (model.config.text_config, model.generation_config):
            config.bos_token_id, config.eos_token_id, config.pad_token_id = bos, 2, 0
        earlier = [*opening, *what, *closing, 3869, 2]
        for before in ([], earlier):
            prompt = [bos, *before, *opening, space, image, image, line, *what, *closing]
            ids = torch.tensor([0, 0, *prompt])
            rows = adapter_for(model).question(ids, (ids == image).int())
            assert rows.tolist() == list(range(len(ids) - 8, len(ids) - 4))


RELEASED = {
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
    r"^model\.vision_tower\.": "vision_tower.vision_model.",
    r"^model\.(multi_modal_projector\.|image_newline)": r"\1",
}


def test_names_of_the_released_checkpoint(tmp_path):
    tiny_llava_next(layers=2, depth=2).save_pretrained(tmp_path)
    tiny_llava_next_processor().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for pattern, released in RELEASED.items():
        weights = {re.sub(pattern, released, name): tensor for name, tensor in weights.items()}
    assert "image_newline" in weights
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = loading.load(ModelConfig("tiny", str(tmp_path), dtype="float32", device="cpu")).model.state_dict()
    expected = tiny_llava_next(layers=2, depth=2).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_images_without_sizes_are_refused(model, processor):
    inputs = inputs_of(processor, ["one image"])
    del inputs["image_sizes"]
    with pytest.raises(ValueError, match="came without image_sizes"), harness.prune(model, "uniform", keep=0.3):
        model(**inputs)


@torch.no_grad()
def test_images_that_were_encoded_outside_are_refused(model, processor):
    inputs = inputs_of(processor, ["one image"])
    outside = model.model.get_image_features(inputs.pop("pixel_values"), inputs.pop("image_sizes"), return_dict=True)
    call = partial(model, **inputs, mm_encoder_outputs={"image": outside})
    message = r"outside the prune block.*pass pixel_values and image_sizes"
    with pytest.raises(ValueError, match=message), harness.prune(model, "uniform", keep=0.3):
        call()
