"""Qwen2.5-VL under `prune`: the same as gathering by hand however prompts are arranged, and never silently unpruned."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import HIDDEN, IMAGE, VIDEO, tiny_folder, tiny_processor, tiny_qwen
from torch import nn
from transformers import StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import harness
from harness.models import adapter_for
from harness.models.rows import entering
from harness.models.scorer import VisionSelectorScorer, save_scorer
from methods.base import Method, Selection, Signal

TOKENS = 10  # decoded in the generation tests
# name -> (prompt, sizes of its images, frames of its videos); sizes in pixels, 28 a token
SAMPLES = {
    "one image": (f"look {IMAGE} what?", [(112, 140)], []),
    "small image": (f"{IMAGE} and a longer question about it?", [(56, 84)], []),
    "text between": (f"a {IMAGE} then {IMAGE} which?", [(84, 84), (56, 140)], []),
    "adjacent": (f"{IMAGE}{IMAGE}{IMAGE} hm", [(56, 56), (112, 84), (84, 56)], []),
    "video": (f"see {VIDEO} when?", [], [(6, 84, 112)]),
    "mixed": (f"{IMAGE} vs {VIDEO} or {IMAGE}?", [(84, 112), (56, 56)], [(4, 56, 84)]),
}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_qwen()


@pytest.fixture(scope="module")
def scorer():
    torch.manual_seed(1)
    return VisionSelectorScorer(HIDDEN, 16, init_scale=0.5)


def inputs_of(processor, samples, side="left"):
    """Process names of SAMPLES, or entries like theirs."""
    texts, images, videos = [], [], []
    for sample in samples:
        text, sizes, clips = SAMPLES[sample] if isinstance(sample, str) else sample
        # The pixels depend on nothing but the question, so that a sample is the same in every batch.
        generator = np.random.default_rng(sum(map(ord, text)))
        texts.append(text)
        images += [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        videos += [generator.integers(0, 256, (clip[0], 3, *clip[1:]), dtype=np.uint8) for clip in clips]
    processor.tokenizer.padding_side = side
    kwargs = {"do_sample_frames": False} if videos else {}
    return processor(
        text=texts, images=images or None, videos=videos or None, padding=True, return_tensors="pt", **kwargs
    )


@dataclass
class Gathered:
    """The reference: one sample, its kept rows gathered by hand, no cache, no hooks."""

    embeddings: torch.Tensor  # [1, L, D]
    positions: torch.Tensor  # [3, 1, L]
    next_position: int

    @classmethod
    def of(cls, model, inputs, kept):
        inner, ids = model.model, inputs["input_ids"]
        embeddings = model.get_input_embeddings()(ids).clone()
        visual = torch.zeros_like(ids, dtype=torch.bool)
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in inputs:
                encode = getattr(inner, f"get_{kind}_features")
                features = encode(inputs[pixels], inputs[f"{kind}_grid_thw"], return_dict=True).pooler_output
                where = ids == getattr(model.config, f"{kind}_token_id")
                embeddings[where] = torch.cat(list(features))
                visual |= where
        keys = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
        positions, _ = inner.get_rope_index(ids, **{key: inputs[key] for key in keys if key in inputs})
        where = visual[0].nonzero().squeeze(1)
        rows = sorted(set(range(ids.shape[1])) - set(where.tolist()) | set(where[kept].tolist()))
        return cls(embeddings[:, rows], positions[:, :, rows], int(positions.max()) + 1)

    def logits(self, model):
        return model.lm_head(model.model.language_model(inputs_embeds=self.embeddings, position_ids=self.positions)[0])

    def append(self, model, token):
        self.embeddings = torch.cat([self.embeddings, model.get_input_embeddings()(token.view(1, 1))], dim=1)
        position = torch.full((3, 1, 1), self.next_position)
        self.positions = torch.cat([self.positions, position], dim=2)
        self.next_position += 1

    def answer(self, model, pick=lambda logits: logits.argmax()):
        tokens = []
        for _ in range(TOKENS):
            tokens.append(pick(self.logits(model)[0, -1]))
            if int(tokens[-1]) == model.generation_config.eos_token_id:
                break
            self.append(model, tokens[-1])
        return torch.stack(tokens).tolist()


def generate(model, inputs, **kwargs):
    made = model.generate(**inputs, **{"max_new_tokens": TOKENS, "do_sample": False, **kwargs})
    return made[:, inputs["input_ids"].shape[1] :].tolist()


def pruned(model, inputs, first=lambda: None, method="uniform", **kwargs):
    """Do something first, then generate, in one block."""
    with harness.prune(model, method, **{"keep": 0.3, **kwargs}):
        first()
        return generate(model, inputs)


def hooks(model):
    names = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return [dict(getattr(module, name)) for module in model.modules() for name in names]


class TestLikeGatheringByHand:
    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @pytest.mark.parametrize("name", SAMPLES)
    @torch.no_grad()
    def test_logits(self, processor, scorer, name, attn):
        model, inputs = tiny_qwen(attn=attn), inputs_of(processor, [name])
        plain = model(**inputs).logits
        with harness.prune(model, "idpruner", keep=0.4, scorer=scorer) as pruning:
            logits = model(**inputs).logits
        (record,) = pruning.take()
        assert record.k == len(record.kept) == max(1, round(record.n * 0.4)) < record.n
        assert logits.shape[1] == plain.shape[1] - record.n + record.k
        expected = Gathered.of(model, inputs, record.kept).logits(model)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert (logits[:, -1] - plain[:, -1]).abs().max() > 1e-2

    @pytest.mark.parametrize("name", SAMPLES)
    @torch.no_grad()
    def test_generation_with_cache_equals_a_loop_without(self, model, processor, name):
        inputs = inputs_of(processor, [name])
        with harness.prune(model, "uniform", tokens=3) as pruning:
            answer = generate(model, inputs)
        (record,) = pruning.records
        assert record.k == 3
        assert answer[0] == Gathered.of(model, inputs, record.kept).answer(model)
        assert answer != generate(model, inputs)

    @torch.no_grad()
    def test_sampling(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(model, "uniform", keep=0.3) as pruning:
            torch.manual_seed(3)
            answer = generate(model, inputs, do_sample=True, top_k=0)
        torch.manual_seed(3)
        draw = Gathered.of(model, inputs, pruning.records[0].kept).answer(
            model, lambda logits: torch.multinomial(logits.softmax(0), 1)[0]
        )
        assert answer[0] == draw

    @torch.no_grad()
    def test_beam_search_scores_its_answer_as_the_reference_does(self, model, processor):
        names = ["mixed", "small image"]
        inputs = inputs_of(processor, names)
        with harness.prune(model, "random", keep=0.3) as pruning:
            length = {"max_new_tokens": 6, "min_new_tokens": 6}
            out = model.generate(**inputs, **length, num_beams=3, return_dict_in_generate=True, output_scores=True)
        assert len(pruning.records) == 2  # one per prompt, not one per beam
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            reference = Gathered.of(model, inputs_of(processor, [name]), record.kept)
            total = 0.0
            for token in out.sequences[row, inputs["input_ids"].shape[1] :]:
                scores = reference.logits(model)[0, -1]
                scores[model.generation_config.eos_token_id] = -torch.inf  # what min_new_tokens does
                total += float(reference.logits(model)[0, -1].log_softmax(0)[token])
                reference.append(model, token)
            assert total / 6 == pytest.approx(float(out.sequences_scores[row]), abs=1e-4)

    @torch.no_grad()
    def test_decoding_by_hand_continues_from_the_unpruned_length(self, model, processor):
        inputs = inputs_of(processor, ["text between"])
        with harness.prune(model, "uniform", keep=0.2) as pruning:
            out, answer = model(**inputs, use_cache=True), []
            for _ in range(TOKENS):
                answer.append(int(out.logits[0, -1].argmax()))
                step = torch.tensor([[answer[-1]]])
                out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
        assert answer == Gathered.of(model, inputs, pruning.records[0].kept).answer(model)

    @torch.no_grad()
    def test_assisted_decoding(self, model, processor):
        every_letter = (IMAGE + "".join(map(chr, range(32, 127))) + "?", [(112, 112)], [])
        inputs, steps = inputs_of(processor, [every_letter]), []
        with harness.prune(model, "uniform", keep=0.25):
            handle = model.model.language_model.layers[0].register_forward_pre_hook(
                lambda module, args: steps.append(args[0].shape[1])
            )
            assisted = generate(model, inputs, prompt_lookup_num_tokens=3, max_new_tokens=40)
            handle.remove()
            assert assisted == generate(model, inputs, max_new_tokens=40)
        assert max(steps[1:]) > 1

    @torch.no_grad()
    def test_a_further_turn_by_hand(self, model, processor):
        inputs, turn = inputs_of(processor, ["one image"]), torch.tensor([[65, 66, 67]])
        with harness.prune(model, "uniform", keep=0.25) as pruning:
            cache = model(**inputs, use_cache=True).past_key_values
            logits = model(input_ids=turn, past_key_values=cache, use_cache=True).logits
        reference = Gathered.of(model, inputs, pruning.records[0].kept)
        for token in turn[0]:
            reference.append(model, token)
        torch.testing.assert_close(logits, reference.logits(model)[:, -3:], atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_cache_holds_only_what_was_kept_and_rope_deltas_stay(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        model(**inputs)
        deltas = model.model.rope_deltas.clone()
        with harness.prune(model, "uniform", keep=0.25):
            cache = model(**inputs, use_cache=True).past_key_values
        assert torch.equal(model.model.rope_deltas, deltas)
        assert {len(layer.keys[0, 0]) for layer in cache.layers} == {inputs["input_ids"].shape[1] - 20 + 5}

    @torch.no_grad()
    def test_half_precision(self, processor, scorer):
        model, inputs = tiny_qwen(dtype=torch.bfloat16), inputs_of(processor, ["mixed"])
        with harness.prune(model, "visionselector", keep=0.5, scorer=scorer) as pruning:
            logits = model(**inputs).logits
        expected = Gathered.of(model, inputs, pruning.records[0].kept).logits(model)
        torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.05)

    @torch.no_grad()
    def test_the_scorer_sees_all_visual_tokens_of_a_sample_and_none_of_another(self, model, processor, scorer):
        inputs = inputs_of(processor, ["text between", "video"])
        seen = []
        handle = scorer.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
        with harness.prune(model, "visionselector", keep=0.5, scorer=scorer) as pruning:
            model(**inputs)
        handle.remove()
        assert [len(features) for features in seen] == [record.n for record in pruning.records] == [19, 36]
        images = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        torch.testing.assert_close(seen[0], torch.cat(list(images.pooler_output)))


class TestBatches:
    @pytest.mark.parametrize("attn", ["sdpa", "eager", "flash_like"])
    @pytest.mark.parametrize("method", ["idpruner", "random"])
    @torch.no_grad()
    def test_batch_of_four_equals_one_by_one(self, processor, scorer, method, attn):
        model, names = tiny_attention(attn), ["one image", "mixed", "adjacent", "video"]
        together = inputs_of(processor, names)
        with harness.prune(model, method, keep=0.3, scorer=scorer) as pruning:
            pruning.seed([5, 6, 7, 8])
            answers = generate(model, together)
            records, single = pruning.take(), []
            for seed, name in enumerate(names, start=5):
                pruning.seed(seed)
                single += generate(model, inputs_of(processor, [name]))
        assert pruning.records == records
        padding = model.generation_config.pad_token_id
        assert answers == [answer + [padding] * (len(answers[0]) - len(answer)) for answer in single]

    @torch.no_grad()
    def test_grids_come_in_order_of_appearance(self, model, processor):
        with harness.prune(model, "uniform", keep=0.5) as pruning:
            generate(model, inputs_of(processor, ["mixed", "video", "one image"]))
        assert [record.grids for record in pruning.take()] == [
            [(1, 3, 4), (2, 2, 3), (1, 2, 2)],
            [(3, 3, 4)],
            [(1, 4, 5)],
        ]
        assert pruning.records == []

    @torch.no_grad()
    def test_prompts_of_one_length_with_different_budgets(self, model, processor):
        """Here generate() passes no mask at all, and the cut has to make one."""
        long, short = inputs_of(processor, ["one image"]), inputs_of(processor, ["small image"])
        missing = long["input_ids"].shape[1] - short["input_ids"].shape[1]
        assert missing < 0
        text, *visuals = SAMPLES["one image"]
        names = [("x" * -missing + text, *visuals), "small image"]
        inputs = inputs_of(processor, names)
        assert bool(inputs["attention_mask"].all())
        with harness.prune(model, "uniform", keep=0.3) as pruning:
            answers = generate(model, inputs)
        for answer, name, record in zip(answers, names, pruning.records, strict=True):
            assert answer == Gathered.of(model, inputs_of(processor, [name]), record.kept).answer(model)

    @torch.no_grad()
    def test_right_padding_in_a_plain_forward(self, model, processor):
        names = ["one image", "mixed", "small image"]
        with harness.prune(model, "uniform", keep=0.3) as pruning:
            logits = model(**inputs_of(processor, names, side="right")).logits
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            expected = Gathered.of(model, inputs_of(processor, [name]), record.kept).logits(model)[0]
            torch.testing.assert_close(logits[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_a_text_only_sample_among_others_is_not_touched(self, model, processor):
        text_only = ("just a question, no picture", [], [])
        inputs = inputs_of(processor, [text_only, "one image"])
        with harness.prune(model, "uniform", keep=0.3) as pruning:
            answers = generate(model, inputs)
        assert [(record.n, record.k) for record in pruning.records] == [(0, 0), (20, 6)]
        assert answers[0] == generate(model, inputs_of(processor, [text_only]))[0]

    @torch.no_grad()
    def test_several_answers_to_one_prompt_share_one_draw(self, model, processor):
        inputs = inputs_of(processor, ["one image", "mixed"])
        with harness.prune(model, "random", keep=0.3) as pruning:
            generate(model, inputs, do_sample=True, num_return_sequences=3)
        assert [record.n for record in pruning.records] == [20, 28]

    @torch.no_grad()
    def test_seeds(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(model, "random", keep=0.5, seed=4) as pruning:
            model(**inputs)
            model(**inputs)
            pruning.seed(4)
            model(**inputs)
        first, second, again = (record.kept for record in pruning.records)
        assert first == again != second


class TestNothingChanges:
    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @pytest.mark.parametrize("method", ["none", "random", "idpruner"])
    @torch.no_grad()
    def test_keeping_all_is_bit_identical(self, processor, scorer, method, attn):
        model, inputs = tiny_qwen(attn=attn), inputs_of(processor, ["mixed", "one image", "text between"])
        plain, answers = model(**inputs, output_hidden_states=True), generate(model, inputs)
        with harness.prune(model, method, keep=1.0, scorer=scorer) as pruning:
            pruned, again = model(**inputs, output_hidden_states=True), generate(model, inputs)
        assert torch.equal(plain.logits, pruned.logits)
        assert all(map(torch.equal, plain.hidden_states, pruned.hidden_states))
        assert answers == again
        assert [record.kept for record in pruning.records] == [list(range(n)) for n in (28, 20, 19)] * 2

    @torch.no_grad()
    def test_text_only_prompts_pass_through(self, model, processor):
        inputs = processor(text=["hello", "a longer text"], padding=True, padding_side="left", return_tensors="pt")
        plain, answers = model(**inputs).logits, generate(model, inputs)
        with harness.prune(model, "uniform", keep=0.1) as pruning:
            assert torch.equal(model(**inputs).logits, plain)
            assert generate(model, inputs) == answers
        assert pruning.records == []

    @torch.no_grad()
    def test_hooks_are_gone_afterwards(self, model, processor):
        inputs, before = inputs_of(processor, ["one image"]), hooks(model)
        plain = model(**inputs).logits
        with harness.prune(model, "uniform", keep=0.3):
            assert hooks(model) != before
            model(**inputs)
        assert hooks(model) == before
        assert torch.equal(model(**inputs).logits, plain)

    def test_hooks_are_gone_after_an_exception(self, model, processor):
        before = hooks(model)
        with pytest.raises(KeyError), harness.prune(model, "uniform", keep=0.3):
            raise KeyError("the user's own")
        assert hooks(model) == before
        with harness.prune(model, "uniform", keep=0.3):  # and the model is free again
            pass


@dataclass(kw_only=True)
class MergeIntoFirst(Method):
    """Keep the first K tokens; the rest goes into the last of them."""

    def _select(self, tokens, k, generator):
        owner = torch.arange(len(tokens.features)).clamp(max=k - 1)
        return Selection(kept=torch.arange(k), owner=owner)


@dataclass(kw_only=True)
class NeedsTheTower(Method):
    """Asks for a signal that no adapter has yet."""

    needs = frozenset({Signal.VIT_ATTENTION, Signal.IMPORTANCE})


@torch.no_grad()
def test_merging_averages_into_the_kept_row(model, processor):
    inputs = inputs_of(processor, ["text between", "one image"])
    single = inputs_of(processor, ["one image"])
    with harness.prune(model, MergeIntoFirst(), tokens=4):
        logits = model(**inputs).logits[1]
    reference = Gathered.of(model, single, list(range(4)))
    features = model.model.get_image_features(single["pixel_values"], single["image_grid_thw"], return_dict=True)
    start = int((single["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    reference.embeddings[0, start + 3] = features.pooler_output[0][3:].mean(0)
    expected = reference.logits(model)[0]
    torch.testing.assert_close(logits[-len(expected) :], expected, atol=1e-4, rtol=1e-4)


class TestNeverSilent:
    def test_a_cut_that_does_not_happen_is_caught(self, model, processor, monkeypatch):
        def keep_all(self, features, grids):
            return Selection(kept=torch.arange(len(features)))

        monkeypatch.setattr(harness.Pruning, "select", keep_all)
        with pytest.raises(RuntimeError, match=r"received \[33\] rows .* asks for \[19\]"):
            pruned(model, inputs_of(processor, ["one image"]))

    @pytest.mark.parametrize("path", ["model", "model.language_model"])
    def test_a_replaced_module_is_caught(self, processor, path):
        model, inputs = tiny_qwen(), inputs_of(processor, ["one image"])
        parent, _, name = path.rpartition(".")
        other = tiny_qwen().get_submodule(path)
        with pytest.raises(RuntimeError, match="unpruned"):
            pruned(model, inputs, lambda: setattr(model.get_submodule(parent), name, other))

    def test_a_replaced_module_is_caught_when_its_error_was_swallowed(self, processor):
        model, inputs = tiny_qwen(), inputs_of(processor, ["one image"])
        original = model.model

        def swallow():
            model.model = tiny_qwen().model
            with pytest.raises(RuntimeError, match="unpruned"):
                generate(model, inputs)
            model.model = original

        with pytest.raises(RuntimeError, match="1 of 2 forward passes"):
            pruned(model, inputs, swallow)
        with pytest.raises(RuntimeError, match="was replaced"), harness.prune(model, "uniform", keep=0.3):
            model.model = tiny_qwen().model

    def test_a_failure_that_was_swallowed_is_raised_at_the_end(self, model, processor):
        inputs, scorer = inputs_of(processor, ["one image"]), nn.Module()
        scorer.forward = lambda features: features[:, 0] * torch.nan

        def swallow():
            with pytest.raises(ValueError, match="NaN"):
                generate(model, inputs)
            scorer.forward = lambda features: features[:, 0]

        with pytest.raises(RuntimeError, match="1 of 2 forward passes"):
            pruned(model, inputs, swallow, method="visionselector", scorer=scorer)

    def test_missing_hook_target(self, model):
        with (
            pytest.raises(RuntimeError, match=r"'model.language_model' does not exist in .*\(transformers 5\."),
            harness.prune(_Wrapper(model), "uniform", keep=0.5),
        ):
            pass


class _Wrapper(nn.Module):
    """Like a wrapper of another library: it has a configuration, but other names."""

    def __init__(self, model):
        super().__init__()
        self.config = model.config
        self.model = nn.Module()
        self.model.visual = model.model.visual


class TestRefused:
    def refuses(self, model, message, call, error=ValueError, method="uniform", **kwargs):
        before = hooks(model)
        with pytest.raises(error, match=message) as caught, harness.prune(model, method, **{"keep": 0.3, **kwargs}):
            call()
        assert "\n" not in str(caught.value)
        assert hooks(model) == before

    def test_labels(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        self.refuses(model, "labels", lambda: model(**inputs, labels=inputs["input_ids"]))

    def test_static_cache(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=200)
        self.refuses(model, "cache", lambda: model(**inputs, past_key_values=cache))
        self.refuses(model, "mask|cache", lambda: generate(model, inputs, cache_implementation="static"))

    def test_a_second_turn_on_a_pruned_cache(self, model, processor):
        inputs = inputs_of(processor, ["one image"])

        def two_turns():
            out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, torch.tensor([[65, 66, 67]])], dim=1)
            model.generate(input_ids=ids, past_key_values=out.past_key_values, max_new_tokens=4)

        self.refuses(model, "pruned cache", two_turns)

    def test_generation_without_cache(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        self.refuses(model, "use_cache", lambda: generate(model, inputs, use_cache=False))

    def test_chunked_prefill(self, model, processor):
        inputs = inputs_of(processor, ["text between"])
        self.refuses(model, "grid|prefill", lambda: generate(model, inputs, prefill_chunk_size=16))

    def test_embeddings_without_ids(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        self.refuses(model, "input_ids", lambda: model(inputs_embeds=embeddings))

    def test_placeholders_without_an_image(self, model, processor):
        ids = inputs_of(processor, ["one image"])["input_ids"]
        self.refuses(model, "20 image tokens", lambda: model(input_ids=ids))

    def test_hidden_visual_tokens_and_4d_masks(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        length = inputs["input_ids"].shape[1]
        causal = torch.ones(1, 1, length, length).tril().log()
        mask = (inputs["input_ids"] != model.config.image_token_id).long()
        self.refuses(model, "hides visual tokens", lambda: model(**{**inputs, "attention_mask": mask}))
        positions = torch.arange(length).expand(3, 1, -1)
        whole = {**inputs, "attention_mask": causal, "position_ids": positions}
        self.refuses(model, "padding mask", lambda: model(**whole))

    def test_packed_sequences(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        del inputs["attention_mask"]
        length = inputs["input_ids"].shape[1]
        positions = torch.cat([torch.arange(length - 4), torch.arange(4)]).expand(4, 1, -1)
        self.refuses(model, "packed", lambda: model(**inputs, position_ids=positions))

    def test_nested_blocks(self, model):
        def nested():
            with harness.prune(model, "random", keep=0.5):
                pass

        self.refuses(model, "already being pruned", nested, error=RuntimeError)
        other = tiny_qwen()
        with harness.prune(model, "uniform", keep=0.5), harness.prune(other, "uniform", keep=0.5):
            pass

    @pytest.mark.parametrize(
        ("method", "kwargs", "message"),
        [
            ("idprunner", {}, "did you mean 'idpruner'"),
            ("uniform", {"keep": None}, "neither"),
            ("uniform", {"tokens": 4}, "either"),
            ("uniform", {"keep": 1.5}, "keep must be"),
            ("idpruner", {}, "needs a trained scorer"),
            ("idpruner", {"lamb": 0.5}, "did you mean 'lam'"),
            ("idpruner", {"scorer": VisionSelectorScorer(32, 8)}, "width 32"),
            (MergeIntoFirst(), {"lam": 0.5}, "already an instance"),
            (NeedsTheTower(), {}, "vit_attention, which family qwen2_5_vl cannot supply yet"),
        ],
    )
    def test_wrong_arguments(self, model, method, kwargs, message):
        self.refuses(model, message, lambda: None, method=method, **kwargs)

    def test_unknown_family(self):
        with pytest.raises(ValueError, match=r"no adapter for Linear .* qwen2_5_vl"):
            adapter_for(nn.Linear(2, 2))


def test_a_model_brings_its_scorer(tmp_path, processor, scorer):
    folder = tiny_folder(tmp_path)
    model = type(tiny_qwen()).from_pretrained(folder)
    with pytest.raises(ValueError, match="needs a trained scorer"), harness.prune(model, "visionselector", keep=0.5):
        pass
    save_scorer(scorer, folder / "scorer")
    inputs = inputs_of(processor, ["mixed"])
    with harness.prune(model, "visionselector", keep=0.5) as found:
        generate(model, inputs)
    with harness.prune(model, "visionselector", keep=0.5, scorer=scorer) as given:
        generate(model, inputs)
    assert found.records == given.records


def test_rows_entering_a_layer_are_counted_under_every_kind_of_mask():
    states, valid = torch.zeros(2, 4, 8), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    causal = torch.ones(4, 4).tril().bool() & valid.bool()[:, None, None]
    assert entering(states, None) == [4, 4]
    assert entering(states, valid) == [2, 4]
    assert entering(states, causal) == [2, 4]
    assert entering(states, torch.where(causal, 0.0, torch.finfo(torch.float32).min)) == [2, 4]


def tiny_attention(attn):
    """The tiny model with a kernel; "flash_like" keeps FlashAttention's contract on the CPU."""
    if attn != "flash_like":
        return tiny_qwen(attn=attn)
    ALL_ATTENTION_FUNCTIONS.register("flash_like", _flash_like)
    ALL_MASK_ATTENTION_FUNCTIONS.register("flash_like", flash_attention_mask)
    model = tiny_qwen()
    model.model.language_model.config._attn_implementation = "flash_like"
    return model


def _flash_like(module, query, key, value, attention_mask, scaling, position_ids=None, **kwargs):
    """Unpad by a mask [B, S], which alone comes; text positions that jump would mean packed sequences."""
    assert attention_mask is None or attention_mask.ndim == 2
    if position_ids is not None and len(query) == 1 and query.shape[2] > 1:
        assert bool((position_ids.diff(dim=-1) == 1).all()), "taken for packed sequences"
    output = torch.zeros_like(query)
    groups, steps = query.shape[1] // key.shape[1], query.shape[2]
    for row in range(len(query)):
        rows = slice(None) if attention_mask is None else attention_mask[row].bool()
        new = slice(None) if attention_mask is None else attention_mask[row, -steps:].bool()
        q, k, v = query[row][:, new], key[row][:, rows], value[row][:, rows]
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        seen = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).log()
        output[row][:, new] = (q @ k.transpose(1, 2) * scaling + seen).softmax(-1) @ v
    return output.transpose(1, 2), None
