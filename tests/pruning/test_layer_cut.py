"""Cuts between decoder layers: the kept rows run as in the plain model's layers, and every layer's cache is right."""

import copy
from itertools import pairwise

import pytest
import torch
from accelerate import cpu_offload
from attention_kernels import KERNELS, with_kernel
from probes import Keys, MergeInside
from reference_prune import SAMPLES, GatheredInside, equally_long, generate, hooks, inputs_of
from tiny_models import IMAGE, tiny_qwen

import harness
from methods.base import Selection, Signal

LAYERS = 4


@pytest.fixture(scope="module")
def deep():
    return tiny_qwen(layers=LAYERS)


class TestLikeGatheringByHand:
    @pytest.mark.parametrize("attn", KERNELS)
    @pytest.mark.parametrize("variant", ["official", "paper"])
    @torch.no_grad()
    def test_logits(self, processor, attn, variant):
        model, inputs = with_kernel(tiny_qwen(layers=LAYERS), attn), inputs_of(processor, ["mixed"])
        plain = model(**inputs).logits
        with harness.prune(model, Keys(variant=variant), keep=0.4) as pruning:
            logits = model(**inputs).logits
        (record,) = pruning.take()
        sdpa = tiny_qwen(layers=LAYERS)
        expected = GatheredInside.behind(sdpa, inputs, record.kept, 1).logits(sdpa)
        assert record.k == len(record.kept) == 11
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert (logits[:, -1] - plain[:, -1]).abs().max() > 1e-2

    @pytest.mark.parametrize("layer", [0, 2])
    @pytest.mark.parametrize("name", SAMPLES)
    @torch.no_grad()
    def test_generation(self, deep, processor, name, layer):
        inputs = inputs_of(processor, [name])
        with harness.prune(deep, Keys(layer=layer), tokens=3) as pruning:
            answer = generate(deep, inputs)
        (record,) = pruning.records
        assert answer[0] == GatheredInside.behind(deep, inputs, record.kept, layer).answer(deep)

    @torch.no_grad()
    def test_it_is_another_cut_than_at_the_input(self, deep, processor):
        inputs, found = inputs_of(processor, ["one image"]), []
        for layer in range(LAYERS - 1):
            with harness.prune(deep, MergeInside(layer=layer), tokens=3):
                found.append(deep(**inputs).logits[0, -1])
        assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(found))

    @torch.no_grad()
    def test_merging_averages_what_leaves_the_layer(self, deep, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(deep, MergeInside(layer=LAYERS - 2), tokens=4):
            out = deep(**inputs, output_hidden_states=True)
        before, after = out.hidden_states[LAYERS - 2 + 1], out.hidden_states[-1]
        assert before.shape[1] == after.shape[1] + 16
        start = int((inputs["input_ids"][0] == deep.config.image_token_id).nonzero()[0])
        plain = deep(**inputs, output_hidden_states=True).hidden_states[LAYERS - 1][0]
        torch.testing.assert_close(before[0], plain)
        rows = torch.cat([plain[: start + 3], plain[start + 3 : start + 20].mean(0, keepdim=True), plain[start + 20 :]])
        reference = GatheredInside.behind(deep, inputs, [0, 1, 2, 3], -1)
        reference.kept = torch.arange(len(rows))
        positions = GatheredInside.behind(deep, inputs, [0, 1, 2, 3], -1)
        turned = deep.model.language_model.rotary_emb(rows, positions.positions[:, :, positions.kept])
        mask = torch.full((len(rows), len(rows)), torch.finfo(rows.dtype).min).triu(1)[None, None]
        expected = deep.model.language_model.layers[-1](rows[None], attention_mask=mask, position_embeddings=turned)
        torch.testing.assert_close(after, deep.model.language_model.norm(expected), atol=1e-4, rtol=1e-4)

    def test_merging_before_the_mlp_is_refused(self, deep, processor):
        with (
            pytest.raises(ValueError, match="merges, which needs the cut behind"),
            harness.prune(deep, MergeInside(variant="paper"), tokens=3),
        ):
            deep(**inputs_of(processor, ["one image"]))


class TestBatches:
    @pytest.mark.parametrize("attn", KERNELS)
    @torch.no_grad()
    def test_batch_of_four_equals_one_by_one(self, processor, attn):
        names = ["one image", "mixed", "adjacent", "video"]
        model = with_kernel(tiny_qwen(layers=LAYERS), attn)
        with harness.prune(model, Keys(), keep=0.3) as pruning:
            answers = generate(model, inputs_of(processor, names))
            records, single = pruning.take(), []
            for name in names:
                single += generate(model, inputs_of(processor, [name]))
        assert pruning.records == records
        padding = model.generation_config.pad_token_id
        assert answers == [answer + [padding] * (len(answers[0]) - len(answer)) for answer in single]

    @torch.no_grad()
    def test_prompts_of_one_length_and_a_text_among_others(self, deep, processor):
        names = [*equally_long(), ("just a question, no picture", [], [])]
        for some in (names[:2], names):
            inputs = inputs_of(processor, some)
            with harness.prune(deep, Keys(variant="paper"), keep=0.3) as pruning:
                answers = generate(deep, inputs)
            for answer, name, record in zip(answers, some, pruning.records, strict=True):
                alone = inputs_of(processor, [name])
                expected = GatheredInside.behind(deep, alone, record.kept, 1).answer(deep)
                assert answer[: len(expected)] == expected

    @torch.no_grad()
    def test_right_padding_in_a_plain_forward(self, deep, processor):
        names = ["one image", "mixed", "small image"]
        with harness.prune(deep, Keys(), keep=0.3) as pruning:
            logits = deep(**inputs_of(processor, names, side="right")).logits
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            expected = GatheredInside.behind(deep, inputs_of(processor, [name]), record.kept, 1).logits(deep)[0]
            torch.testing.assert_close(logits[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)


class TestDecoding:
    @torch.no_grad()
    def test_each_layers_cache_is_as_long_as_what_it_saw(self, deep, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(deep, Keys(), tokens=5) as pruning:
            cache = deep(**inputs, use_cache=True).past_key_values
            assert [len(layer.keys[0, 0]) for layer in cache.layers] == [33, 33, 18, 18]
            deep(input_ids=torch.tensor([[65]]), past_key_values=cache)
        assert [len(layer.keys[0, 0]) for layer in cache.layers] == [34, 34, 19, 19]
        assert pruning.records[0].per_layer == pytest.approx((20 + 20 + 5 + 5) / 4)
        assert pruning.records[0].compute == pytest.approx(0.625)

    @torch.no_grad()
    def test_cutting_before_the_mlp_saves_its_work_too(self, deep, processor):
        seen = []
        handle = deep.model.language_model.layers[1].mlp.gate_proj.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].shape[1])
        )
        with harness.prune(deep, Keys(variant="paper"), tokens=5) as pruning:
            deep(**inputs_of(processor, ["one image"]))
        handle.remove()
        assert seen == [18]
        layer = deep.model.language_model.layers[1]
        mlp, whole = (sum(p.numel() for p in part.parameters()) for part in (layer.mlp, layer))
        assert pruning.records[0].per_layer == pytest.approx((20 + 20 - 15 * mlp / whole + 5 + 5) / 4)

    @torch.no_grad()
    def test_sampling_and_several_answers(self, deep, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(deep, Keys(), keep=0.3) as pruning:
            torch.manual_seed(3)
            answer = generate(deep, inputs, do_sample=True, top_k=0)
            generate(deep, inputs, do_sample=True, num_return_sequences=3)
        assert [record.n for record in pruning.records] == [20, 20]
        torch.manual_seed(3)
        reference = GatheredInside.behind(deep, inputs, pruning.records[0].kept, 1)
        assert answer[0] == reference.answer(deep, lambda logits: torch.multinomial(logits.softmax(0), 1)[0])

    @torch.no_grad()
    def test_beam_search_scores_its_answer_as_the_reference_does(self, deep, processor):
        names = ["mixed", "small image"]
        inputs = inputs_of(processor, names)
        with harness.prune(deep, Keys(), keep=0.3) as pruning:
            length = {"max_new_tokens": 5, "min_new_tokens": 5}
            out = deep.generate(**inputs, **length, num_beams=3, return_dict_in_generate=True, output_scores=True)
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            reference, total = GatheredInside.behind(deep, inputs_of(processor, [name]), record.kept, 1), 0.0
            for token in out.sequences[row, inputs["input_ids"].shape[1] :]:
                total += float(reference.logits(deep)[0, -1].log_softmax(0)[token])
                reference.append(deep, token)
            assert total / 5 == pytest.approx(float(out.sequences_scores[row]), abs=1e-4)

    @torch.no_grad()
    def test_assisted_decoding_and_chunks(self, deep, processor):
        letters = "".join(map(chr, range(32, 127)))
        inputs = inputs_of(processor, [(IMAGE + letters + "?", [(112, 112)], [])])
        with harness.prune(deep, Keys(), keep=0.25):
            plain = generate(deep, inputs, max_new_tokens=30)
            assert generate(deep, inputs, max_new_tokens=30, prompt_lookup_num_tokens=3) == plain
            assert generate(deep, inputs, max_new_tokens=30, prefill_chunk_size=40) == plain

    @pytest.mark.parametrize("how", [lambda cache: cache, copy.deepcopy])
    @torch.no_grad()
    def test_a_further_turn(self, deep, processor, how):
        inputs, turn = inputs_of(processor, ["one image"]), torch.tensor([[65, 66, 67]])
        with harness.prune(deep, Keys(), keep=0.25) as pruning:
            cache = how(deep(**inputs, use_cache=True).past_key_values)
            logits = deep(input_ids=turn, past_key_values=cache, use_cache=True).logits
        reference = GatheredInside.behind(deep, inputs, pruning.records[0].kept, 1)
        for token in turn[0]:
            reference.append(deep, token)
        torch.testing.assert_close(logits, reference.logits(deep)[:, -3:], atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_the_whole_conversation_with_its_cache(self, deep, processor):
        """Layer 0 holds everything, so generate() counts right: here no turn has to be refused."""
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(deep, Keys(), keep=0.25) as pruning:
            out = deep.generate(**inputs, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, torch.tensor([[65, 66, 67]])], dim=1)
            more = deep.generate(input_ids=ids, past_key_values=out.past_key_values, max_new_tokens=4)
        reference = GatheredInside.behind(deep, inputs, pruning.records[0].kept, 1)
        for token in ids[0, inputs["input_ids"].shape[1] :]:
            reference.append(deep, token)
        assert more[0, ids.shape[1] :].tolist() == reference.answer(deep)[:4]

    @torch.no_grad()
    def test_a_cache_of_another_cut_is_refused(self, deep, processor):
        inputs, letter = inputs_of(processor, ["one image"]), torch.tensor([[65]])
        with harness.prune(deep, Keys(layer=0), keep=0.25):
            cache = deep(**inputs, use_cache=True).past_key_values
        for method in ("uniform", Keys(layer=1)):
            with pytest.raises(ValueError, match="cut after decoder layer 0"), harness.prune(deep, method, keep=0.25):
                deep(input_ids=letter, past_key_values=cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :15], layer.values[:, :, :15]
        with pytest.raises(ValueError, match="cropped to a length"), harness.prune(deep, Keys(layer=0), keep=0.25):
            deep(input_ids=letter, past_key_values=cache)


class TestNeverSilent:
    @torch.no_grad()
    def test_keeping_all_is_bit_identical(self, deep, processor):
        inputs = inputs_of(processor, ["mixed", "one image"])
        plain, answers = deep(**inputs, output_hidden_states=True), generate(deep, inputs)
        with harness.prune(deep, Keys(), keep=1.0) as pruning:
            pruned, again = deep(**inputs, output_hidden_states=True), generate(deep, inputs)
        assert all(map(torch.equal, plain.hidden_states, pruned.hidden_states))
        assert torch.equal(plain.logits, pruned.logits)
        assert answers == again
        assert [record.per_layer for record in pruning.records] == [28, 20] * 2

    def test_a_cut_that_does_not_happen_is_caught(self, deep, processor, monkeypatch):
        def keep_all(self, samples, sizes):
            return [Selection(kept=torch.arange(n)) for n in sizes]

        monkeypatch.setattr(harness.Pruning, "select", keep_all)
        inputs = inputs_of(processor, ["one image"])
        with (
            pytest.raises(RuntimeError, match=r"layer 2 .* received \[33\] rows .* asks for \[19\]"),
            harness.prune(deep, Keys(), keep=0.3),
        ):
            deep(**inputs)

    def test_hooks_are_gone_after_an_exception(self, deep, processor, monkeypatch):
        inputs, before = inputs_of(processor, ["one image"]), hooks(deep)
        plain = deep(**inputs).logits
        monkeypatch.setattr(Keys, "_select", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError), harness.prune(deep, Keys(variant="paper"), keep=0.3):
            deep(**inputs)
        assert hooks(deep) == before
        assert torch.equal(deep(**inputs).logits, plain)

    @torch.no_grad()
    def test_a_failed_pass_leaves_nothing_behind(self, deep, processor, monkeypatch):
        inputs, text = inputs_of(processor, ["one image"]), processor(text=["hello"], return_tensors="pt")
        plain = deep(**text).logits

        def swallow():
            monkeypatch.setattr(deep.model.language_model.layers[1].mlp, "forward", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                deep(**inputs)
            monkeypatch.undo()
            assert torch.equal(deep(**text).logits, plain)

        with pytest.raises(RuntimeError, match="1 of 1 forward passes"), harness.prune(deep, Keys(), keep=0.3):
            swallow()

    @pytest.mark.parametrize(
        ("method", "message"),
        [
            (Keys(layer=LAYERS - 1), "has 4 layers, so 2 is the last with one behind it"),
            (Keys(layer=40), "cuts after decoder layer 40"),
        ],
    )
    def test_layers_that_are_not_there(self, deep, method, message):
        with pytest.raises(ValueError, match=message), harness.prune(deep, method, keep=0.3):
            pass


class TestLayerState:
    """What a method sees of layer j is what the plain model has there."""

    @pytest.mark.parametrize("hidden", ["normed_input", "output", "normed_output"])
    @pytest.mark.parametrize("side", ["left", "right"])
    @torch.no_grad()
    def test_state(self, processor, monkeypatch, hidden, side):
        names, states, model = ["one image", "mixed"], [], tiny_qwen(attn="eager", layers=LAYERS)
        choose = Keys._select
        monkeypatch.setattr(Keys, "_select", lambda *args: states.append(args[1]) or choose(*args))
        with harness.prune(model, Keys(hidden=hidden), keep=0.3):
            model(**inputs_of(processor, names, side))
        decoder = model.model.language_model
        for name, tokens in zip(names, states, strict=True):
            inputs, state = inputs_of(processor, [name]), tokens.llm
            out = model(**inputs, output_attentions=True, output_hidden_states=True)
            ids = inputs["input_ids"][0]
            visual = (ids == model.config.image_token_id) | (ids == model.config.video_token_id)
            assert torch.equal(state.visual_idx, visual.nonzero().squeeze(1))
            k = state.k.repeat_interleave(2, dim=0)
            scores = state.q @ k.mT / state.q.shape[-1] ** 0.5
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
            torch.testing.assert_close(scores.softmax(-1), out.attentions[1][0], atol=1e-5, rtol=1e-4)
            expected = {
                "normed_input": decoder.layers[1].input_layernorm(out.hidden_states[1]),
                "output": out.hidden_states[2],
                "normed_output": decoder.norm(out.hidden_states[2]),
            }[hidden]
            torch.testing.assert_close(state.hidden, expected[0], atol=1e-4, rtol=1e-4)
            features = out.hidden_states[0][0, visual]
            torch.testing.assert_close(tokens.features, features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("needs", [{Signal.VIT_ATTENTION}, {Signal.VIT_KEYS, Signal.TEXT}])
@torch.no_grad()
def test_other_signals_come_along(deep, processor, monkeypatch, needs):
    """A method inside the LLM may ask for the vision tower and the question, too."""
    seen, choose = [], Keys._select
    monkeypatch.setattr(Keys, "needs", frozenset({Signal.LLM, *needs}))
    monkeypatch.setattr(Keys, "_select", lambda *args: seen.append(args[1]) or choose(*args))
    with harness.prune(deep, Keys(), keep=0.3):
        generate(deep, inputs_of(processor, ["mixed", "one image"]), max_new_tokens=2)
    for tokens, n in zip(seen, (28, 20), strict=True):
        given = {Signal.VIT_ATTENTION: tokens.vit_attention, Signal.VIT_KEYS: tokens.vit_keys, Signal.TEXT: tokens.text}
        assert {signal for signal, value in given.items() if value is not None} == needs
        assert tokens.vit_keys is None or len(tokens.vit_keys) == n
        assert tokens.vit_attention is None or len(tokens.vit_attention["last"]) == n


@torch.no_grad()
def test_an_offloaded_model(processor):
    inputs, answers = inputs_of(processor, ["mixed", "one image"]), []
    for place in (lambda model: model, lambda model: cpu_offload(model, execution_device=torch.device("cpu"))):
        model = place(tiny_qwen(layers=LAYERS))
        with harness.prune(model, Keys(hidden="normed_output"), keep=0.3):
            answers.append(generate(model, inputs))
    assert answers[0] == answers[1]
