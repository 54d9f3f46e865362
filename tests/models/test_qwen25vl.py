"""Qwen2.5-VL under `prune`: a pass is the same as gathering by hand, however prompts are arranged."""

import importlib.util
import warnings
from dataclasses import dataclass

import pytest
import torch
from attention_kernels import KERNELS, with_kernel
from reference_prune import SAMPLES, Gathered, equally_long, generate, inputs_of
from tiny_models import tiny_qwen

import harness
from harness.pruning.gather import entering
from methods.base import Method, Selection


@dataclass(kw_only=True)
class MergeIntoFirst(Method):
    """Keep the first K tokens; the rest goes into the last of them."""

    def _select(self, tokens, k, generator):
        owner = torch.arange(len(tokens.features)).clamp(max=k - 1)
        return Selection(kept=torch.arange(k), owner=owner)


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
    @pytest.mark.parametrize("attn", KERNELS)
    @pytest.mark.parametrize("method", ["idpruner", "random"])
    @torch.no_grad()
    def test_batch_of_four_equals_one_by_one(self, processor, scorer, method, attn):
        model, names = with_kernel(tiny_qwen(), attn), ["one image", "mixed", "adjacent", "video"]
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
        names = equally_long()
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
    def test_prompts_of_one_length_show_no_side_and_come_out_padded_on_the_left(self, model, processor):
        names = equally_long()
        inputs = inputs_of(processor, names, side="right")
        assert bool(inputs["attention_mask"].all())
        with harness.prune(model, "uniform", keep=0.3) as pruning:
            logits = model(**inputs).logits
        lengths = [inputs["input_ids"].shape[1] - record.n + record.k for record in pruning.records]
        assert lengths[0] != lengths[1]
        for row, (name, record, length) in enumerate(zip(names, pruning.records, lengths, strict=True)):
            expected = Gathered.of(model, inputs_of(processor, [name]), record.kept).logits(model)[0]
            assert len(expected) == length
            torch.testing.assert_close(logits[row, -length:], expected, atol=1e-4, rtol=1e-4)

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


def test_rows_entering_a_layer_are_counted_under_every_kind_of_mask():
    states, valid = torch.zeros(2, 4, 8), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    causal = torch.ones(4, 4).tril().bool() & valid.bool()[:, None, None]
    assert entering(states, None) == [4, 4]
    assert entering(states, valid) == [2, 4]
    assert entering(states, causal) == [2, 4]
    assert entering(states, torch.where(causal, 0.0, torch.finfo(torch.float32).min)) == [2, 4]


@pytest.fixture
def real_flash_attention():
    there = {"flash-attn": importlib.util.find_spec("flash_attn"), "CUDA": torch.cuda.is_available()}
    missing = " and no ".join(name for name, found in there.items() if not found)
    if missing:
        reason = f"THE REAL FlashAttention IS NOT TESTED HERE: no {missing}"
        warnings.warn(reason, stacklevel=1)  # pytest lists warnings, but skips only on demand
        pytest.skip(reason)
    return "flash_attention_2", "cuda"


class TestRealFlashAttention:
    """On a GPU, against PyTorch's own kernel; half precision, so close but not equal."""

    def models(self, attn, device):
        return [tiny_qwen(dtype=torch.bfloat16, attn=kind).to(device) for kind in (attn, "sdpa")]

    def apart(self, a, b):
        return float((a.float() - b.float()).norm() / b.float().norm())

    @torch.no_grad()
    def test_vision_tower(self, processor, real_flash_attention):
        inputs = inputs_of(processor, ["mixed", "one image"]).to(real_flash_attention[1])
        flash, plain = (
            model.model.visual(inputs["pixel_values"].bfloat16(), inputs["image_grid_thw"]).pooler_output
            for model in self.models(*real_flash_attention)
        )
        assert self.apart(flash, plain) < 0.05

    @pytest.mark.parametrize("names", [["one image"], ["one image", "mixed", "video"]])
    @torch.no_grad()
    def test_prefill_and_decoding(self, processor, real_flash_attention, names):
        inputs = inputs_of(processor, names).to(real_flash_attention[1])
        letters = torch.tensor([65, 66, 67, 68]).to(real_flash_attention[1])

        def logits(model, method, keep):
            with harness.prune(model, method, keep=keep):
                answers = generate(model, inputs)
                out = model(**inputs, use_cache=True)
                steps = [out.logits[:, -1]]
                for letter in letters:
                    step = letter.expand(len(names), 1)
                    out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
                    steps.append(out.logits[:, -1])
            assert [answer[0] for answer in answers] == steps[0].argmax(-1).tolist()
            return torch.stack(steps)

        flash, plain = self.models(*real_flash_attention)
        pruned = logits(plain, "uniform", 0.3)
        assert self.apart(logits(flash, "uniform", 0.3), pruned) < 0.05
        assert self.apart(logits(plain, "none", 1.0), pruned) > 0.2
