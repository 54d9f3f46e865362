"""Qwen3-VL under `prune`: kept rows and their DeepStack features, gathered by hand, give the same."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from attention_kernels import with_kernel
from PIL import Image
from probes import Keys as Norms
from probes import MergeInside
from reference_prune import SAMPLES, generate, hooks, inputs_of
from tiny_models import VIDEO
from tiny_qwen3 import DEEP, LAYERS, GatheredDeep, GatheredDeepInside, tiny_qwen3, tiny_qwen3_processor, visual_rows

import harness
from harness.core.config import ModelConfig
from harness.models import loading
from harness.models.preprocessing import PixelLimits, limits_of, to_inputs
from methods.base import Method, Selection, Signal


@dataclass(kw_only=True)
class MergeIntoFirst(Method):
    """Keep the first K tokens; the rest goes into the last of them."""

    def _select(self, tokens, k, generator):
        return Selection(torch.arange(k), owner=torch.arange(len(tokens.features)).clamp(max=k - 1))


@dataclass(kw_only=True)
class Keys(Norms):
    """Keep the tokens whose keys point somewhere; their norms are all the same here."""

    def _select(self, tokens, k, generator):
        along = tokens.llm.k[:, tokens.llm.visual_idx, ::3].sum((0, 2))
        return Selection.of(along.argsort(descending=True, stable=True)[:k])


@pytest.fixture(scope="module")
def processor():
    return tiny_qwen3_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3()


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def merged(reference, model, inputs, k):
    """Rows and features of the reference, the tokens from the k-th on averaged into it."""
    where = visual_rows(model, inputs["input_ids"])
    for rows in (reference.embeddings, *reference.features):
        rows[0, where[k - 1]] = rows[0, where[k - 1 :]].mean(0)


class TestCutBeforeTheLLM:
    @pytest.mark.parametrize("name", SAMPLES)
    @torch.no_grad()
    def test_logits(self, processor, model, name):
        inputs = inputs_of(processor, [name])
        plain = model(**inputs).logits
        with harness.prune(model, "divprune", keep=0.4) as pruning:
            logits = model(**inputs).logits
        (record,) = pruning.take()
        assert record.k == max(1, round(record.n * 0.4)) < record.n == sum(t * h * w for t, h, w in record.grids)
        assert logits.shape[1] == plain.shape[1] - record.n + record.k
        reference = GatheredDeep.of(model, inputs, record.kept)
        close(logits, reference.logits(model))
        for features in reference.features:  # the comparison would notice if one were left out
            given, features[:] = features.clone(), 0
            assert (logits - reference.logits(model)).abs().max() > 1e-2
            features[:] = given

    @torch.no_grad()
    def test_a_merged_row_has_the_mean_of_the_features(self, processor, model):
        inputs = inputs_of(processor, ["mixed"])
        with harness.prune(model, MergeIntoFirst(), tokens=4):
            logits = model(**inputs).logits
        whole = GatheredDeep.of(model, inputs, range(len(visual_rows(model, inputs["input_ids"]))))
        merged(whole, model, inputs, 4)
        where = visual_rows(model, inputs["input_ids"])
        close(logits, whole.at([row for row in range(whole.visual.shape[1]) if row not in where[4:]]).logits(model))

    @torch.no_grad()
    def test_half_precision_and_eager(self, processor):
        model, inputs = tiny_qwen3(torch.bfloat16, attn="eager"), inputs_of(processor, ["one image"])
        with harness.prune(model, "uniform", keep=0.5) as pruning:
            logits = model(**inputs).logits
        expected = GatheredDeep.of(model, inputs, pruning.records[0].kept).logits(model)
        torch.testing.assert_close(logits, expected, atol=0.3, rtol=0.1)

    @torch.no_grad()
    def test_a_video_is_one_grid_though_the_time_stands_in_front_of_its_steps(self, processor, model):
        inputs = inputs_of(processor, ["mixed", "video", "one image"])
        with harness.prune(model, "uniform", keep=0.5) as pruning:
            generate(model, inputs)
        assert [record.grids for record in pruning.records] == [
            [(1, 3, 4), (2, 2, 3), (1, 2, 2)],
            [(3, 2, 3)],
            [(1, 4, 4)],
        ]


class TestCutInsideTheLLM:
    @pytest.mark.parametrize("variant", ["official", "paper"])
    @pytest.mark.parametrize("layer", range(LAYERS - 1))
    @pytest.mark.parametrize("name", ["one image", "mixed"])
    @torch.no_grad()
    def test_later_features_are_cut_too(self, processor, model, layer, name, variant):
        inputs = inputs_of(processor, [name])
        with harness.prune(model, Keys(layer=layer, variant=variant), tokens=4) as pruning:
            logits = model(**inputs).logits
        reference = GatheredDeepInside.behind(model, inputs, pruning.records[0].kept, layer)
        expected = reference.logits(model)
        close(logits, expected[:, -logits.shape[1] :])
        assert logits.shape == expected.shape
        reference.features[2][:] = 0
        assert (reference.logits(model) - expected).abs().max() > 1e-2

    @pytest.mark.parametrize("layer", range(LAYERS - 1))
    @torch.no_grad()
    def test_merging_averages_what_is_still_to_be_added(self, processor, model, layer):
        inputs, k = inputs_of(processor, ["one image"]), 4
        with harness.prune(model, MergeInside(layer=layer), tokens=k):
            logits = model(**inputs).logits
        where = visual_rows(model, inputs["input_ids"])
        reference = GatheredDeepInside.behind(model, inputs, range(k), layer)
        decoder = model.model.language_model
        states, positions, features = reference.embeddings, reference.positions, reference.features
        for number, module in enumerate(decoder.layers):
            if number == layer + 1:
                for rows in (states, *features):
                    rows[0, where[k - 1]] = rows[0, where[k - 1 :]].mean(0)
                states, positions = states[:, reference.stay], positions[:, :, reference.stay]
                features = [part[:, reference.stay] for part in features]
            mask = torch.full((states.shape[1],) * 2, torch.finfo(states.dtype).min).triu(1)[None, None]
            states = module(states, attention_mask=mask, position_embeddings=decoder.rotary_emb(states, positions))
            if number < len(DEEP):
                states = states + features[number]
        close(logits, model.lm_head(decoder.norm(states)))

    @pytest.mark.parametrize("hidden", ["normed_input", "output"])
    @pytest.mark.parametrize("layer", [0, 3])
    @torch.no_grad()
    def test_state_of_the_layer(self, processor, monkeypatch, layer, hidden):
        """Against the model's own maps; what leaves an early layer has the features that are added behind it."""
        states, model, choose = [], tiny_qwen3(attn="eager"), Keys._select
        monkeypatch.setattr(Keys, "_select", lambda *args: states.append(args[1]) or choose(*args))
        inputs = inputs_of(processor, ["mixed"])
        entered = {}
        handles = [
            module.register_forward_pre_hook(lambda module, args, number=number: entered.update({number: args[0]}))
            for number, module in enumerate(model.model.language_model.layers)
        ]
        out = model(**inputs, output_attentions=True)
        for handle in handles:
            handle.remove()
        with harness.prune(model, Keys(layer=layer, hidden=hidden), keep=0.3):
            model(**inputs)
        (tokens,) = states
        state, decoder = tokens.llm, model.model.language_model
        assert state.visual_idx.tolist() == visual_rows(model, inputs["input_ids"])
        scores = state.q @ state.k.repeat_interleave(2, dim=0).mT / state.q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), out.attentions[layer][0], atol=1e-5, rtol=1e-4)
        given = (
            decoder.layers[layer].input_layernorm(entered[layer]) if hidden == "normed_input" else entered[layer + 1]
        )
        close(state.hidden, given[0])


class TestBatchesAndDecoding:
    @pytest.mark.parametrize(
        ("method", "attn"),
        [
            ("divprune", "flash_like"),
            (Keys(layer=0), "flash_like"),
            (Keys(layer=1, variant="paper"), "flash_like"),
            (Keys(layer=3), "sdpa"),
        ],
    )
    @torch.no_grad()
    def test_batch_equals_one_by_one_and_the_reference(self, processor, model, method, attn):
        plain, model, names = model, with_kernel(tiny_qwen3(), attn), ["one image", "mixed", "video"]
        with harness.prune(model, method, keep=0.3) as pruning:
            answers = generate(model, inputs_of(processor, names))
            records, single = pruning.take(), []
            for name in names:
                single += generate(model, inputs_of(processor, [name]))
        assert pruning.records == records
        padding = model.generation_config.pad_token_id
        assert answers == [answer + [padding] * (len(answers[0]) - len(answer)) for answer in single]
        for name, record, answer in list(zip(names, records, single, strict=True))[1:]:
            inputs = inputs_of(processor, [name])
            if isinstance(method, str):
                reference = GatheredDeep.of(plain, inputs, record.kept)
            else:
                reference = GatheredDeepInside.behind(plain, inputs, record.kept, method.layer)
            assert answer == reference.answer(plain)

    @pytest.mark.parametrize("method", ["uniform", Keys(layer=0)])
    @torch.no_grad()
    def test_right_padding_and_a_text_among_others(self, processor, model, method):
        names = ["one image", ("just a question, no picture", [], []), "mixed"]
        with harness.prune(model, method, keep=0.3) as pruning:
            logits = model(**inputs_of(processor, names, side="right")).logits
        for row in (0, 2):
            inputs, kept = inputs_of(processor, [names[row]]), pruning.records[row].kept
            if method == "uniform":
                expected = GatheredDeep.of(model, inputs, kept).logits(model)[0]
            else:
                expected = GatheredDeepInside.behind(model, inputs, kept, 0).logits(model)[0]
            close(logits[row, : len(expected)], expected)

    @pytest.mark.parametrize("method", ["uniform", Keys(layer=0)])
    @torch.no_grad()
    def test_prompts_of_one_length_with_different_budgets(self, processor, model, method):
        text = SAMPLES["small image"][0]
        small, large = ("x" * 6 + text, [(64, 96)], []), (text, [(96, 128)], [])
        inputs = inputs_of(processor, [small, large])
        assert bool(inputs["attention_mask"].all())
        with harness.prune(model, method, keep=0.3) as pruning:
            answers = generate(model, inputs)
            single = [generate(model, inputs_of(processor, [name]))[0] for name in (small, large)]
        assert [record.k for record in pruning.records] == [2, 4, 2, 4]
        for answer, alone in zip(answers, single, strict=True):
            assert answer[: len(alone)] == alone

    @pytest.mark.parametrize("method", ["uniform", Keys(layer=1)])
    @torch.no_grad()
    def test_beams(self, processor, model, method):
        names = ["mixed", "small image"]
        inputs, length = inputs_of(processor, names), {"max_new_tokens": 4, "min_new_tokens": 4}
        with harness.prune(model, method, keep=0.3) as pruning:
            out = model.generate(**inputs, **length, num_beams=3, return_dict_in_generate=True, output_scores=True)
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            alone, total = inputs_of(processor, [name]), 0.0
            reference = GatheredDeep.of(model, alone, record.kept)
            if method != "uniform":
                reference = GatheredDeepInside.behind(model, alone, record.kept, 1)
            for token in out.sequences[row, inputs["input_ids"].shape[1] :]:
                total += float(reference.logits(model)[0, -1].log_softmax(0)[token])
                reference.append(model, token)
            assert total / 4 == pytest.approx(float(out.sequences_scores[row]), abs=1e-4)

    @pytest.mark.parametrize("method", ["uniform", Keys(layer=0)])
    @torch.no_grad()
    def test_each_layers_cache_and_positions_go_on(self, processor, model, method):
        inputs, turn = inputs_of(processor, ["video"]), torch.tensor([[65, 66]])
        with harness.prune(model, method, keep=0.25) as pruning:
            cache = model(**inputs, use_cache=True).past_key_values
            lengths = [len(layer.keys[0, 0]) for layer in cache.layers]
            logits = model(input_ids=turn, past_key_values=cache, use_cache=True).logits
        (record,), whole = pruning.records, inputs["input_ids"].shape[1]
        short = whole - record.n + record.k
        assert lengths == ([short] * LAYERS if method == "uniform" else [whole] + [short] * (LAYERS - 1))
        reference = GatheredDeep.of(model, inputs, record.kept)
        if method != "uniform":
            reference = GatheredDeepInside.behind(model, inputs, record.kept, 0)
        for token in turn[0]:
            reference.append(model, token)
        close(logits, reference.logits(model)[:, -2:])

    @pytest.mark.parametrize("method", ["uniform", Keys(layer=0)])
    @torch.no_grad()
    def test_keeping_all_is_bit_identical(self, processor, model, method):
        inputs = inputs_of(processor, ["mixed", "one image"])
        plain, answers = model(**inputs, output_hidden_states=True), generate(model, inputs)
        before = hooks(model)
        with harness.prune(model, method, keep=1.0):
            pruned, again = model(**inputs, output_hidden_states=True), generate(model, inputs)
        assert all(map(torch.equal, plain.hidden_states, pruned.hidden_states))
        assert torch.equal(plain.logits, pruned.logits)
        assert answers == again
        assert hooks(model) == before

    @torch.no_grad()
    def test_a_features_row_too_few_is_caught(self, processor, model, monkeypatch):
        """The model itself refuses features that do not fit the mask: nothing can be left uncut in silence."""
        monkeypatch.setattr("harness.models.qwen3vl.Qwen3VL.adding", lambda *args: {})
        with pytest.raises((IndexError, RuntimeError)), harness.prune(model, "uniform", keep=0.5):
            model(**inputs_of(processor, ["one image"]))


class Watch(Method):
    needs = frozenset({Signal.TEXT})

    def _select(self, tokens, k, generator):
        self.seen = tokens
        return Selection(torch.arange(k))


@torch.no_grad()
def test_times_of_frames_are_not_the_question(processor, model):
    watch = Watch()
    text = f"<|im_start|>user\nIn {VIDEO} when?<|im_end|>\n<|im_start|>assistant\n"
    inputs = inputs_of(processor, [(text, [], [(6, 64, 64)])])
    assert processor.decode(inputs["input_ids"][0]).count(" seconds>") == 3
    with harness.prune(model, watch, keep=0.5):
        model(**inputs)
    ids = processor.tokenizer("In  when?", return_tensors="pt")["input_ids"]
    assert torch.equal(watch.seen.text, model.get_input_embeddings()(ids)[0])


LIMITS = PixelLimits(min_pixels=4 * 1024, max_pixels=64 * 1024, max_frames=4)


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ask(*media):
    kinds = [{"type": "video" if isinstance(m, list) else "image", "url": m} for m in media]
    return [{"role": "user", "content": [*kinds, {"type": "text", "text": "what?"}]}]


class TestInputs:
    @pytest.mark.parametrize(("size", "grid"), [((64, 96), (6, 4)), ((20, 20), (4, 4)), ((2000, 1000), (10, 22))])
    def test_images_take_the_size_of_the_limits(self, processor, size, grid):
        inputs = to_inputs(processor, [ask(picture(*size))], LIMITS)
        assert tuple(inputs["image_grid_thw"][0].tolist()) == (1, *grid)

    def test_frames_have_their_times(self, processor):
        inputs = to_inputs(processor, [ask([picture(64, 96, seed) for seed in range(5)])], LIMITS)
        assert inputs["video_grid_thw"].tolist() == [[2, 6, 4]]
        text = processor.decode(inputs["input_ids"][0])
        assert "<0.2 seconds>" in text  # of frames at 0 and 0.5 seconds
        assert "<1.2 seconds>" in text

    @torch.no_grad()
    def test_the_model_answers_them_pruned(self, processor, model, scorer):
        inputs = to_inputs(processor, [ask(picture(64, 96), [picture(64, 96)] * 4), ask(picture(96, 96))], LIMITS)
        with harness.prune(model, "visionselector", keep=0.5, scorer=scorer) as pruning:
            generate(model, inputs)
        assert [record.n for record in pruning.records] == [18, 9]


@torch.no_grad()
def test_a_checkpoint_loads_and_answers(processor, model, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    pixels = {"min_pixels": LIMITS.min_pixels, "max_pixels": LIMITS.max_pixels, "max_frames": LIMITS.max_frames}
    config = ModelConfig(name="tiny", pretrained=str(tmp_path), dtype="float32", device="cpu", **pixels)
    loaded = loading.load(config)
    inputs = to_inputs(loaded.processor, [ask([picture(64, 96)] * 4)], limits_of(loaded.processor, config))
    with harness.prune(loaded.model, "uniform", keep=0.5) as pruning:
        assert generate(loaded.model, inputs) != generate(model, inputs)
    assert [record.n for record in pruning.records] == [12]
