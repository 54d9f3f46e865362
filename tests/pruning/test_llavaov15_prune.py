"""LLaVA-OneVision-1.5 under `prune`: cut before and inside the LLM, it computes what gathering by hand does."""

import copy

import pytest
import torch
from attention_kernels import KERNELS, with_kernel
from probes import Keys, Watch
from reference_prune import SAMPLES, Gathered, GatheredInside, equally_long, generate, hooks, inputs_of
from tiny_llavaov15 import llavaov15_processor, tiny_llavaov15
from tiny_models import IMAGE

import harness

LAYERS = 4
CUTS = ["uniform", Keys(), Keys(variant="paper"), Keys(layer=2)]
BATCH = ["one image", "mixed", "adjacent", "video"]
LETTERS = "".join(map(chr, range(32, 127)))


@pytest.fixture(scope="module")
def tiny():
    return tiny_llavaov15(layers=LAYERS)


@pytest.fixture(scope="module")
def processor():
    return llavaov15_processor()


def reference(model, inputs, record, method):
    if isinstance(method, str):
        return Gathered.of(model, inputs, record.kept)
    return GatheredInside.behind(model, inputs, record.kept, method.layer)


class TestLikeGatheringByHand:
    @pytest.mark.parametrize("attn", KERNELS)
    @pytest.mark.parametrize("method", CUTS, ids=str)
    @torch.no_grad()
    def test_logits(self, tiny, processor, method, attn):
        model, inputs = with_kernel(tiny_llavaov15(layers=LAYERS), attn), inputs_of(processor, ["mixed"])
        plain = model(**inputs).logits
        with harness.prune(model, method, keep=0.4) as pruning:
            logits = model(**inputs).logits
        (record,) = pruning.records
        assert (record.n, record.k, record.grids) == (40, 16, [(1, 3, 4), (4, 2, 3), (1, 2, 2)])
        assert logits.shape[1] == plain.shape[1] - 24
        torch.testing.assert_close(logits, reference(tiny, inputs, record, method).logits(tiny), atol=1e-4, rtol=1e-4)
        assert (logits[:, -1] - plain[:, -1]).abs().max() > 1e-2

    @pytest.mark.parametrize("method", CUTS, ids=str)
    @pytest.mark.parametrize("name", SAMPLES)
    @torch.no_grad()
    def test_generation(self, tiny, processor, name, method):
        inputs = inputs_of(processor, [name])
        with harness.prune(tiny, method, tokens=3) as pruning:
            answer = generate(tiny, inputs)
        (record,) = pruning.records
        assert answer[0] == reference(tiny, inputs, record, method).answer(tiny)

    @torch.no_grad()
    def test_generation_at_compact_positions(self, tiny, processor):
        inputs = inputs_of(processor, ["mixed"])
        with harness.prune(tiny, "uniform", tokens=3, positions="compact") as pruning:
            answer = generate(tiny, inputs)
        compact = Gathered.of(tiny, inputs, pruning.records[0].kept)
        assert answer[0] != compact.answer(tiny)
        compact = Gathered.of(tiny, inputs, pruning.records[0].kept)
        length = compact.embeddings.shape[1]
        compact.positions, compact.following = torch.arange(length).view(1, -1), torch.tensor([[length]])
        assert answer[0] == compact.answer(tiny)

    @torch.no_grad()
    def test_each_layers_cache_is_as_long_as_what_it_saw(self, tiny, processor):
        inputs = inputs_of(processor, ["one image"])
        for method, lengths in (("uniform", [18] * 4), (Keys(), [33, 33, 18, 18])):
            with harness.prune(tiny, method, tokens=5):
                cache = tiny(**inputs, use_cache=True).past_key_values
            assert [len(layer.keys[0, 0]) for layer in cache.layers] == lengths

    @pytest.mark.parametrize("unpack", ["released", "fixed"])
    @torch.no_grad()
    def test_features_are_the_models_own(self, processor, unpack):
        model, watch = tiny_llavaov15(), Watch()
        model.config.unpack = unpack
        inputs = inputs_of(processor, ["adjacent"])
        with harness.prune(model, watch, keep=0.5):
            model(**inputs)
        features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        torch.testing.assert_close(watch.seen[0].features, torch.cat(list(features)))

    @torch.no_grad()
    def test_half_precision(self, processor):
        model, inputs = tiny_llavaov15(dtype=torch.bfloat16), inputs_of(processor, ["mixed"])
        with harness.prune(model, "uniform", keep=0.5) as pruning:
            logits = model(**inputs).logits
        expected = Gathered.of(model, inputs, pruning.records[0].kept).logits(model)
        assert float((logits - expected).norm() / expected.norm()) < 0.05


class TestBatches:
    @pytest.mark.parametrize("attn", KERNELS)
    @pytest.mark.parametrize("method", ["random", Keys()], ids=str)
    @torch.no_grad()
    def test_batch_of_four_equals_one_by_one(self, processor, method, attn):
        model = with_kernel(tiny_llavaov15(layers=LAYERS), attn)
        with harness.prune(model, method, keep=0.3) as pruning:
            pruning.seed([5, 6, 7, 8])
            answers = generate(model, inputs_of(processor, BATCH))
            records, single = pruning.take(), []
            for seed, name in enumerate(BATCH, start=5):
                pruning.seed(seed)
                single += generate(model, inputs_of(processor, [name]))
        assert pruning.records == records
        padding = model.generation_config.pad_token_id
        assert answers == [answer + [padding] * (len(answers[0]) - len(answer)) for answer in single]

    @pytest.mark.parametrize("method", ["uniform", Keys(variant="paper")], ids=str)
    @torch.no_grad()
    def test_prompts_of_one_length_and_a_text_among_others(self, tiny, processor, method):
        names = [*equally_long(), ("just a question, no picture", [], [])]
        for some in (names[:2], names):
            with harness.prune(tiny, method, keep=0.3) as pruning:
                answers = generate(tiny, inputs_of(processor, some))
            for answer, name, record in zip(answers, some, pruning.records, strict=True):
                expected = reference(tiny, inputs_of(processor, [name]), record, method).answer(tiny)
                assert answer[: len(expected)] == expected

    @pytest.mark.parametrize("method", ["uniform", Keys()], ids=str)
    @torch.no_grad()
    def test_right_padding_in_a_plain_forward(self, tiny, processor, method):
        names = ["one image", "mixed", "small image"]
        with harness.prune(tiny, method, keep=0.3) as pruning:
            logits = tiny(**inputs_of(processor, names, side="right")).logits
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            expected = reference(tiny, inputs_of(processor, [name]), record, method).logits(tiny)[0]
            torch.testing.assert_close(logits[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["uniform", Keys()], ids=str)
class TestDecoding:
    @torch.no_grad()
    def test_beam_search_scores_its_answer_as_the_reference_does(self, tiny, processor, method):
        names = ["mixed", "small image"]
        inputs = inputs_of(processor, names)
        with harness.prune(tiny, method, keep=0.3) as pruning:
            length = {"max_new_tokens": 5, "min_new_tokens": 5}
            out = tiny.generate(**inputs, **length, num_beams=3, return_dict_in_generate=True, output_scores=True)
        assert len(pruning.records) == 2
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            gathered, total = reference(tiny, inputs_of(processor, [name]), record, method), 0.0
            for token in out.sequences[row, inputs["input_ids"].shape[1] :]:
                total += float(gathered.logits(tiny)[0, -1].log_softmax(0)[token])
                gathered.append(tiny, token)
            assert total / 5 == pytest.approx(float(out.sequences_scores[row]), abs=1e-4)

    @torch.no_grad()
    def test_assisted_decoding_and_chunks(self, tiny, processor, method):
        inputs = inputs_of(processor, [(IMAGE + LETTERS + "?", [(112, 112)], [])])
        with harness.prune(tiny, method, keep=0.25):
            plain = generate(tiny, inputs, max_new_tokens=20)
            assert generate(tiny, inputs, max_new_tokens=20, prompt_lookup_num_tokens=3) == plain
            assert generate(tiny, inputs, max_new_tokens=20, prefill_chunk_size=40) == plain

    @pytest.mark.parametrize("how", [lambda cache: cache, copy.deepcopy])
    @torch.no_grad()
    def test_a_further_turn_by_hand(self, tiny, processor, method, how):
        inputs, turn = inputs_of(processor, ["text between"]), torch.tensor([[65, 66, 67]])
        with harness.prune(tiny, method, keep=0.25) as pruning:
            cache = how(tiny(**inputs, use_cache=True).past_key_values)
            logits = tiny(input_ids=turn, past_key_values=cache, use_cache=True).logits
        gathered = reference(tiny, inputs, pruning.records[0], method)
        for token in turn[0]:
            gathered.append(tiny, token)
        torch.testing.assert_close(logits, gathered.logits(tiny)[:, -3:], atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_the_whole_conversation_with_its_cache(self, tiny, processor, method):
        """generate() counts by layer 0: right if it holds everything, refused if not."""
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(tiny, method, keep=0.25) as pruning:
            out = tiny.generate(**inputs, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, torch.tensor([[65, 66, 67]])], dim=1)
            again = {"input_ids": ids, "past_key_values": out.past_key_values, "max_new_tokens": 4}
            if isinstance(method, str):
                with pytest.raises(ValueError, match="do not follow what the pruned cache holds"):
                    tiny.generate(**again)
                return
            more = tiny.generate(**again)
        gathered = reference(tiny, inputs, pruning.records[0], method)
        for token in ids[0, inputs["input_ids"].shape[1] :]:
            gathered.append(tiny, token)
        assert more[0, ids.shape[1] :].tolist() == gathered.answer(tiny)[:4]


class TestNeverSilent:
    @pytest.mark.parametrize("method", ["uniform", Keys()], ids=str)
    @torch.no_grad()
    def test_keeping_all_is_bit_identical(self, tiny, processor, method):
        inputs, before = inputs_of(processor, ["mixed", "one image"]), hooks(tiny)
        plain, answers = tiny(**inputs).logits, generate(tiny, inputs)
        with harness.prune(tiny, method, keep=1.0) as pruning:
            assert torch.equal(tiny(**inputs).logits, plain)
            assert generate(tiny, inputs) == answers
        assert [record.n for record in pruning.records] == [40, 20] * 2
        assert hooks(tiny) == before

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"use_cache": False}, "leave the cache on"), ({"cache_implementation": "static"}, "cache_implementation")],
    )
    @torch.no_grad()
    def test_what_cannot_be_pruned(self, tiny, processor, options, message):
        inputs = inputs_of(processor, ["one image"])
        with pytest.raises(ValueError, match=message), harness.prune(tiny, "uniform", keep=0.3):
            generate(tiny, inputs, **options)

    def test_labels(self, tiny, processor):
        inputs = inputs_of(processor, ["one image"])
        with pytest.raises(ValueError, match="labels do not fit"), harness.prune(tiny, "uniform", keep=0.3):
            tiny(**inputs, labels=inputs["input_ids"])
