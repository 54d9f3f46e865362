"""LLaVA-1.5 under `prune`: a pass is the same as gathering by hand, at original positions and at compact ones."""

from functools import partial

import pytest
import torch
from attention_kernels import KERNELS, with_kernel
from reference_prune import SAMPLES, GatheredFlat, generate, hooks, inputs_of
from tiny_models import IMAGE, tiny_llava, tiny_llava_processor, tiny_qwen

import harness

NAMES = [name for name, (_, _, clips) in SAMPLES.items() if not clips]
PADDED = ["one image", "text between", "adjacent", "small image"]  # of 16, 32, 48 and 16 visual tokens
POSITIONS = ["keep", "compact"]


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def by_hand(model, processor, name, record, positions):
    return GatheredFlat.of(model, inputs_of(processor, [name]), record.kept, positions == "compact")


class TestLikeGatheringByHand:
    @pytest.mark.parametrize("positions", POSITIONS)
    @pytest.mark.parametrize("attn", KERNELS)
    @torch.no_grad()
    def test_logits(self, model, processor, scorer, attn, positions):
        pruned = with_kernel(tiny_llava(), attn)
        for name in NAMES:
            inputs = inputs_of(processor, [name])
            plain = pruned(**inputs).logits
            with harness.prune(pruned, "idpruner", keep=0.4, scorer=scorer, positions=positions) as pruning:
                logits = pruned(**inputs).logits
            (record,) = pruning.take()
            assert record.k == len(record.kept) == max(1, round(record.n * 0.4)) < record.n
            assert logits.shape[1] == plain.shape[1] - record.n + record.k
            expected = by_hand(model, processor, name, record, positions).logits(model)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            assert (logits[:, -1] - plain[:, -1]).abs().max() > 1e-2

    @torch.no_grad()
    def test_compact_is_not_keep(self, model, processor):
        found = []
        for positions in POSITIONS:
            with harness.prune(model, "uniform", tokens=5, positions=positions) as pruning:
                found.append(model(**inputs_of(processor, ["one image"])).logits[0, -1])
            assert (pruning.records[0].n, pruning.records[0].k) == (16, 5)
        assert (found[0] - found[1]).abs().max() > 1e-3

    @pytest.mark.parametrize("text", ["llama", "qwen2"])
    @torch.no_grad()
    def test_other_language_models_and_half_precision(self, processor, text):
        model, inputs = tiny_llava(dtype=torch.bfloat16, text=text), inputs_of(processor, ["text between"])
        with harness.prune(model, "uniform", keep=0.5) as pruning:
            logits = model(**inputs).logits
        expected = GatheredFlat.of(model, inputs, pruning.records[0].kept).logits(model)
        torch.testing.assert_close(logits, expected, atol=0.15, rtol=0.05)


class TestBatches:
    @pytest.mark.parametrize("positions", POSITIONS)
    @pytest.mark.parametrize("attn", KERNELS)
    @torch.no_grad()
    def test_batch_of_four_equals_one_by_one_and_the_reference(self, model, processor, attn, positions):
        pruned = with_kernel(tiny_llava(), attn)
        with harness.prune(pruned, "uniform", tokens=6, positions=positions) as pruning:
            answers = generate(pruned, inputs_of(processor, PADDED))
            records, single = pruning.take(), []
            for name in PADDED:
                single += generate(pruned, inputs_of(processor, [name]))
        assert pruning.records == records
        assert [record.grids for record in records] == [[(1, 4, 4)] * count for count in (1, 2, 3, 1)]
        padding = model.generation_config.pad_token_id
        assert answers == [answer + [padding] * (len(answers[0]) - len(answer)) for answer in single]
        for answer, name, record in zip(single, PADDED, records, strict=True):
            assert answer == by_hand(model, processor, name, record, positions).answer(model)

    @pytest.mark.parametrize("positions", POSITIONS)
    @torch.no_grad()
    def test_right_padding_in_a_plain_forward(self, model, processor, positions):
        with harness.prune(model, "uniform", keep=0.3, positions=positions) as pruning:
            logits = model(**inputs_of(processor, PADDED, side="right")).logits
        for row, (name, record) in enumerate(zip(PADDED, pruning.records, strict=True)):
            expected = by_hand(model, processor, name, record, positions).logits(model)[0]
            torch.testing.assert_close(logits[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_a_text_only_sample_among_others(self, model, processor):
        text_only = ("just a question, no picture", [], [])
        with harness.prune(model, "uniform", keep=0.3, positions="compact") as pruning:
            answers = generate(model, inputs_of(processor, [text_only, "one image"]))
        assert [(record.n, record.k) for record in pruning.records] == [(0, 0), (16, 5)]
        assert answers[0] == generate(model, inputs_of(processor, [text_only]))[0]

    @pytest.mark.parametrize("positions", POSITIONS)
    @torch.no_grad()
    def test_beam_search_scores_its_answer_as_the_reference_does(self, model, processor, positions):
        names = ["adjacent", "small image"]
        inputs = inputs_of(processor, names)
        with harness.prune(model, "uniform", keep=0.3, positions=positions) as pruning:
            length = {"max_new_tokens": 5, "min_new_tokens": 5}
            out = model.generate(**inputs, **length, num_beams=3, return_dict_in_generate=True, output_scores=True)
        assert len(pruning.records) == 2
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            reference, total = by_hand(model, processor, name, record, positions), 0.0
            for token in out.sequences[row, inputs["input_ids"].shape[1] :]:
                total += float(reference.logits(model)[0, -1].log_softmax(0)[token])
                reference.append(model, token)
            assert total / 5 == pytest.approx(float(out.sequences_scores[row]), abs=1e-4)


class TestDecoding:
    @pytest.mark.parametrize("positions", POSITIONS)
    @torch.no_grad()
    def test_a_further_turn_by_hand(self, model, processor, positions):
        inputs, turn = inputs_of(processor, ["one image"]), torch.tensor([[65, 66, 67]])
        with harness.prune(model, "uniform", keep=0.25, positions=positions) as pruning:
            cache = model(**inputs, use_cache=True).past_key_values
            length = inputs["input_ids"].shape[1]
            assert {len(layer.keys[0, 0]) for layer in cache.layers} == {length - 16 + 4}
            logits = model(input_ids=turn, past_key_values=cache, use_cache=True).logits
        reference = by_hand(model, processor, "one image", pruning.records[0], positions)
        for token in turn[0]:
            reference.append(model, token)
        torch.testing.assert_close(logits, reference.logits(model)[:, -3:], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("positions", POSITIONS)
    @torch.no_grad()
    def test_assisted_decoding_and_chunks(self, model, processor, positions):
        letters = "".join(map(chr, range(32, 127)))
        inputs = inputs_of(processor, [(IMAGE + letters + "?", [(112, 112)], [])])
        with harness.prune(model, "uniform", keep=0.25, positions=positions):
            plain = generate(model, inputs, max_new_tokens=30)
            assert generate(model, inputs, max_new_tokens=30, prompt_lookup_num_tokens=3) == plain
            assert generate(model, inputs, max_new_tokens=30, prefill_chunk_size=40) == plain

    @torch.no_grad()
    def test_the_whole_conversation_with_its_cache_is_refused(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(model, "uniform", keep=0.25, positions="compact"):
            out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, torch.tensor([[65, 66, 67]])], dim=1)
            with pytest.raises(ValueError, match="do not follow what the pruned cache holds"):
                model.generate(input_ids=ids, past_key_values=out.past_key_values, max_new_tokens=4)


class TestNothingChanges:
    @pytest.mark.parametrize("positions", POSITIONS)
    @torch.no_grad()
    def test_keeping_all_is_bit_identical(self, model, processor, positions):
        inputs = inputs_of(processor, PADDED)
        plain, answers = model(**inputs, output_hidden_states=True), generate(model, inputs)
        before = hooks(model)
        with harness.prune(model, "random", keep=1.0, positions=positions) as pruning:
            pruned, again = model(**inputs, output_hidden_states=True), generate(model, inputs)
        assert all(map(torch.equal, plain.hidden_states, pruned.hidden_states))
        assert answers == again
        assert [record.k for record in pruning.records] == [16, 32, 48, 16] * 2
        assert hooks(model) == before


class TestRefused:
    def refuses(self, message, model, method="uniform", call=lambda: None, **kwargs):
        before = hooks(model)
        with pytest.raises(ValueError, match=message) as caught, harness.prune(model, method, keep=0.3, **kwargs):
            call()
        assert "\n" not in str(caught.value)
        assert hooks(model) == before

    def test_positions_that_mean_nothing(self, model):
        self.refuses("positions must be one of keep, compact", model, positions="packed")
        self.refuses("family qwen2_5_vl: .* time, row and column", tiny_qwen(), positions="compact")
        deep = tiny_llava(layers=4)
        self.refuses("fastv cuts behind a decoder layer", deep, method="fastv", positions="compact")

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"vision_feature_select_strategy": "full"}, "keeps CLS as a token"),
            ({"vision_feature_layer": [-2, -1]}, "joins vision layers"),
        ],
    )
    def test_other_features(self, config, message):
        self.refuses(message, tiny_llava(**config))

    @pytest.mark.parametrize(
        ("how", "change"),
        [
            ("forward", {"vision_feature_layer": -1}),
            ("forward", {"vision_feature_select_strategy": "full"}),
            ("generate", {"vision_feature_layer": -1}),  # which encodes before the model is called
        ],
    )
    @torch.no_grad()
    def test_other_features_in_a_call(self, model, processor, how, change):
        ((name, value),) = change.items()
        run = partial(model.generate, max_new_tokens=2) if how == "generate" else model
        call = partial(run, **inputs_of(processor, ["one image"]))
        self.refuses(f"{name}={value} is not what the .* tower is read for", model, call=lambda: call(**change))
        with harness.prune(model, "uniform", keep=0.3):
            call(**{name: getattr(model.config, name)})

    def test_features_that_no_layer_gave(self):
        model = tiny_llava(vision_feature_layer=0)
        self.refuses("here they are what enters layer 0", model, method="visionzip")
        with harness.prune(model, "uniform", keep=0.3):
            pass

    def test_a_language_model_whose_queries_are_normed(self):
        model = tiny_llava(text="qwen3", layers=4)
        self.refuses("reads a decoder layer of type qwen3", model, method="fastv")

    def test_a_question_in_a_template_that_is_not_known(self):
        model, message = tiny_llava(text="mistral"), "the question, .* prompts of mistral: supported are llama, qwen2"
        self.refuses(message, model, method="cdpruner")
        with harness.prune(model, "divprune", keep=0.3):
            pass

    def test_what_was_encoded_elsewhere(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        outside = model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
        call = lambda: model(**inputs, mm_encoder_outputs={"image": outside})  # noqa: E731
        self.refuses("outside the prune block.*pass pixel_values", model, call=call)

    def test_packed_sequences(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        length = inputs.pop("attention_mask").shape[1]
        positions = torch.cat([torch.arange(length - 4), torch.arange(4)]).view(1, -1)
        self.refuses("packed", model, call=lambda: model(**inputs, position_ids=positions))
