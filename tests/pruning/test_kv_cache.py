"""Decoding after a pruned prefill: positions and masks are right however the cache is used, or it is refused."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from reference_prune import generate, inputs_of
from tiny_families import BUILDERS, tiny
from tiny_models import IMAGE, VIDEO
from transformers_names import CACHE, cache_of
from uncached_reference import Cut, Prompt

import harness

EVERY_LETTER = "".join(map(chr, range(32, 127)))  # so that what is decoded repeats something of the prompt


def steps_of(model, steps):
    """Record how many rows each pass brings to the first layer; return the handle."""
    layer = model.model.language_model.layers[0]
    return layer.register_forward_pre_hook(lambda module, args: steps.append(args[0].shape[1]))


def check_assisted_decoding(model, inputs):
    """Drafted tokens give the answer of single steps, and some were accepted."""
    steps = []
    with harness.prune(model, "uniform", keep=0.25):
        handle = steps_of(model, steps)
        assisted = generate(model, inputs, prompt_lookup_num_tokens=3, max_new_tokens=40)
        handle.remove()
        assert assisted == generate(model, inputs, max_new_tokens=40)
    assert max(steps[1:]) > 1


def before_each(model, inputs, record, answer=()):
    """Return the logits [A + 1, V] before each token of an answer and after it, from one pass without a cache."""
    rows = Prompt.of(model, inputs).logits(model, Cut(-1, torch.tensor(record.kept)), answer)
    return rows[-len(answer) - 1 :]


class TestLikeAPassWithoutCache:
    """As far as tests/pruning/test_decoding.py, which asks this of every family, does not ask it."""

    @torch.no_grad()
    def test_sampling(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(model, "uniform", keep=0.3) as pruning:
            torch.manual_seed(3)
            (answer,) = generate(model, inputs, do_sample=True, top_k=0)
        steps = before_each(model, inputs, pruning.records[0], answer)[:-1].softmax(-1)
        torch.manual_seed(3)
        assert answer == [int(torch.multinomial(step, 1)) for step in steps]

    @torch.no_grad()
    def test_beam_search_scores_its_answer_as_the_reference_does(self, model, processor):
        names = ["mixed", "small image"]
        inputs = inputs_of(processor, names)
        with harness.prune(model, "random", keep=0.3) as pruning:
            length = {"max_new_tokens": 6, "min_new_tokens": 6}
            out = model.generate(**inputs, **length, num_beams=3, return_dict_in_generate=True, output_scores=True)
        assert len(pruning.records) == 2  # one per prompt, not one per beam
        answers = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        for name, record, answer, score in zip(names, pruning.records, answers, out.sequences_scores, strict=True):
            steps = before_each(model, inputs_of(processor, [name]), record, answer)[:-1].log_softmax(-1)
            assert float(steps[range(6), answer].mean()) == pytest.approx(float(score), abs=1e-4)

    @torch.no_grad()
    def test_assisted_decoding(self, model, processor):
        check_assisted_decoding(model, inputs_of(processor, [(IMAGE + EVERY_LETTER + "?", [(112, 112)], [])]))


class TestCaches:
    """What a cache holds is written on it, whatever happens to it."""

    @torch.no_grad()
    def test_a_further_turn_in_another_block(self, model, processor):
        inputs, turn = inputs_of(processor, ["one image"]), torch.tensor([[65, 66, 67]])
        with harness.prune(model, "uniform", keep=0.25) as pruning:
            cache = model(**inputs, use_cache=True).past_key_values
        with harness.prune(model, "random", keep=0.5):
            logits = model(input_ids=turn, past_key_values=cache, use_cache=True).logits
        expected = before_each(model, inputs, pruning.records[0], turn[0].tolist())[1:]
        torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("how", [lambda cache: cache, copy.deepcopy])
    @torch.no_grad()
    def test_the_whole_conversation_with_its_cache_is_refused(self, model, processor, how):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(model, "uniform", keep=0.25):
            out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, torch.tensor([[65, 66, 67]])], dim=1)
            with pytest.raises(ValueError, match="not the next one after the pruned cache"):
                model.generate(input_ids=ids, past_key_values=how(out.past_key_values), max_new_tokens=4)

    @pytest.mark.parametrize("names", [["one image"], ["mixed", "small image"]])
    @torch.no_grad()
    def test_an_emptied_cache_is_a_new_one(self, model, processor, names):
        inputs, letter = inputs_of(processor, names), torch.full((len(names), 1), 65)
        text = processor(text=["hello", "a longer text"][-len(names) :], padding=True, return_tensors="pt")

        def afterwards(cache):
            cache.reset()
            model(**text, past_key_values=cache)
            return model(input_ids=letter, past_key_values=cache).logits

        plain = afterwards(model(**inputs, use_cache=True).past_key_values)
        with harness.prune(model, "uniform", keep=0.25):
            assert torch.equal(afterwards(model(**inputs, use_cache=True).past_key_values), plain)

    @torch.no_grad()
    def test_text_alone_goes_on_as_without_a_block(self, model, processor, monkeypatch):
        monkeypatch.setattr(model.model, "rope_deltas", None)  # the model keeps those of its last batch
        text, letter = processor(text=["hello"], return_tensors="pt"), torch.tensor([[65]])

        def answered():
            cache = model(**text, use_cache=True).past_key_values
            by_ids = model.model.language_model(input_ids=text["input_ids"])[0]
            return model(input_ids=letter, past_key_values=cache).logits, by_ids

        plain = answered()
        with harness.prune(model, "uniform", keep=0.25):
            assert all(map(torch.equal, answered(), plain))

    @torch.no_grad()
    def test_going_back_behind_the_prefill(self, model, processor):
        names = ["one image", "mixed"]
        inputs = inputs_of(processor, names)
        with harness.prune(model, "uniform", keep=0.25) as pruning:
            cache = model(**inputs, use_cache=True).past_key_values
            cache.crop(-2)
            for ids in inputs["input_ids"][:, -2:].split(1, dim=1):
                logits = model(input_ids=ids, past_key_values=cache).logits
        for row, (name, record) in enumerate(zip(names, pruning.records, strict=True)):
            (expected,) = before_each(model, inputs_of(processor, [name]), record)
            torch.testing.assert_close(logits[row, -1], expected, atol=1e-4, rtol=1e-4)


LETTER = torch.tensor([[65]])


def one_more(model, cache):
    return model(input_ids=LETTER, use_cache=True, **{CACHE: cache}).logits


@pytest.fixture(params=BUILDERS)
def shown(request):
    """A model of each family, and a prompt with an image."""
    model, processor = tiny(request.param)
    return model, inputs_of(processor, ["one image"])


class TestAcrossTheBorder:
    """Where a cache was filled decides where it may be used."""

    @pytest.mark.parametrize(
        "how", [lambda cache: cache, copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
    )
    @pytest.mark.parametrize("method", ["uniform", "fastv"])
    @torch.no_grad()
    def test_a_pruned_cache_is_refused_outside(self, shown, method, how):
        model, inputs = shown
        with harness.prune(model, method, keep=0.25):
            plain = type(cache_of(model(**inputs, use_cache=True))).__mro__[2]
            cache = cache_of(model(**inputs, use_cache=True))
            expected = one_more(model, copy.deepcopy(cache))
        assert isinstance(cache, plain)
        assert type(cache).__name__ == plain.__name__
        cache = how(cache)
        held = cache.get_seq_length()
        with pytest.raises(ValueError, match=r"filled within a prune block .*: go on within a block of") as error:
            one_more(model, cache)
        assert "\n" not in str(error.value)
        assert cache.get_seq_length() == held
        with harness.prune(model, method, keep=0.25):
            assert torch.equal(one_more(model, cache), expected)
        with pytest.raises(ValueError, match="filled within a prune block"):
            one_more(model, cache)

    @pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])  # hooks do not see the end of the second
    @torch.no_grad()
    def test_also_where_a_step_within_the_block_failed(self, model, processor, monkeypatch, error):
        inputs = inputs_of(processor, ["one image"])

        def fails(*args, **kwargs):
            raise error

        with harness.prune(model, "uniform", keep=0.25):
            cache = model(**inputs, use_cache=True).past_key_values
            monkeypatch.setattr(model.model.language_model.layers[1].mlp, "forward", fails)
            with pytest.raises(error):
                one_more(model, cache)
            monkeypatch.undo()
        with pytest.raises(ValueError, match="filled within a prune block"):
            one_more(model, cache)

    @torch.no_grad()
    def test_the_answer_of_a_block_is_not_continued_outside(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(model, "uniform", keep=0.25):
            out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
        with pytest.raises(ValueError, match="filled within a prune block"):
            model.generate(input_ids=out.sequences, past_key_values=out.past_key_values, max_new_tokens=4)

    @pytest.mark.parametrize("method", ["uniform", "fastv"])
    @torch.no_grad()
    def test_a_cache_from_outside_is_refused_within(self, shown, method):
        model, inputs = shown
        cache = cache_of(model(**inputs, use_cache=True))
        with (
            pytest.raises(ValueError, match=r"filled outside prune blocks.*: fill it within") as error,
            harness.prune(model, method, keep=0.25),
        ):
            one_more(model, cache)
        assert "\n" not in str(error.value)

    @torch.no_grad()
    def test_where_nothing_is_dropped_a_cache_may_go_anywhere(self, shown):
        model, inputs = shown
        outside = cache_of(model(**inputs, use_cache=True))
        with harness.prune(model, "none", keep=1.0):
            answers = [one_more(model, copy.deepcopy(outside))]
            within = cache_of(model(**inputs, use_cache=True))
            answers.append(one_more(model, copy.deepcopy(within)))
        answers.append(one_more(model, within))
        assert all(torch.equal(answer, answers[0]) for answer in answers)

    @torch.no_grad()
    def test_a_pruned_cache_that_is_emptied_may_be_filled_outside(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        plain = model(**inputs, use_cache=True)
        with harness.prune(model, "uniform", keep=0.25):
            cache = model(**inputs, use_cache=True).past_key_values
        cache.reset()
        assert torch.equal(model(**inputs, past_key_values=cache).logits, plain.logits)
        assert torch.equal(one_more(model, cache), one_more(model, plain.past_key_values))

    @torch.no_grad()
    def test_a_pruned_cache_is_freed_with_its_last_name(self, model, processor):
        """A reference cycle would hold the memory of every prompt until Python looks for garbage."""
        inputs = inputs_of(processor, ["one image"])
        gc.disable()
        try:
            with harness.prune(model, "uniform", keep=0.25):
                keys = weakref.ref(model(**inputs, use_cache=True).past_key_values.layers[0].keys)
                assert keys() is None
        finally:
            gc.enable()


class TestAClockThatRunsPastTheText:
    """A long video's last frame stands later than the question: generate() counts on from the question."""

    def inputs(self, processor):
        inputs = inputs_of(processor, [(EVERY_LETTER + VIDEO + "?", [], [(24, 56, 56)])])
        inputs["second_per_grid_ts"] = torch.tensor([1.0])
        return inputs

    @torch.no_grad()
    def test_generation(self, model, processor):
        inputs = self.inputs(processor)
        with harness.prune(model, "uniform", keep=0.25) as pruning:
            (answer,) = generate(model, inputs)
        positions = Prompt.of(model, inputs).positions
        assert int(positions[..., -1].max()) + 1 < int(positions.max())
        assert answer == before_each(model, inputs, pruning.records[0], answer)[:-1].argmax(-1).tolist()

    @torch.no_grad()
    def test_assisted_decoding(self, model, processor):
        check_assisted_decoding(model, self.inputs(processor))

    @torch.no_grad()
    def test_by_hand_the_model_counts_on_from_the_last_frame(self, model, processor):
        inputs, letter = self.inputs(processor), torch.tensor([[65]])
        with harness.prune(model, "uniform", keep=0.25) as pruning:
            cache = model(**inputs, use_cache=True).past_key_values
            logits = model(input_ids=letter, past_key_values=cache).logits
        prompt = Prompt.of(model, inputs)
        following = model.model.rope_deltas.view(1, 1, 1).expand(3, 1, 1) + inputs["input_ids"].shape[1]
        prompt.states = torch.cat([prompt.states, model.get_input_embeddings()(letter)], dim=1)
        prompt.positions = torch.cat([prompt.positions, following], dim=-1)
        expected = prompt.logits(model, Cut(-1, torch.tensor(pruning.records[0].kept)))[-1]
        torch.testing.assert_close(logits[0, -1], expected, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_a_wrong_turn_is_refused_even_if_its_positions_fit_by_chance(self, model, processor):
        inputs = self.inputs(processor)
        positions = Prompt.of(model, inputs).positions
        chance = int(positions.max() - positions[..., -1].max())  # tokens to drop
        with harness.prune(model, "uniform", tokens=48 - chance):
            out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, torch.tensor([[65, 66, 67]])], dim=1)
            with pytest.raises(ValueError, match="not the next one after"):
                model.generate(input_ids=ids, past_key_values=out.past_key_values, max_new_tokens=4)


class TestChunkedPrefill:
    @pytest.mark.parametrize("beams", [1, 2])
    @pytest.mark.parametrize("chunk", [512, 40])
    @torch.no_grad()
    def test_one_chunk_holds_all_that_is_visual(self, model, processor, chunk, beams):
        inputs = inputs_of(processor, [(IMAGE + IMAGE + EVERY_LETTER, [(112, 112), (56, 84)], [])])
        with harness.prune(model, "uniform", keep=0.3) as pruning:
            answer = generate(model, inputs, num_beams=beams)
            assert generate(model, inputs, num_beams=beams, prefill_chunk_size=chunk) == answer
        assert pruning.records[0] == pruning.records[1]

    @pytest.mark.parametrize("chunk", [16, 20])
    @torch.no_grad()
    def test_chunks_that_part_the_visual_tokens_are_refused(self, model, processor, chunk):
        inputs = inputs_of(processor, [(IMAGE + IMAGE + EVERY_LETTER, [(112, 112), (56, 84)], [])])
        with (
            pytest.raises(ValueError, match=r"image.*prefill_chunk_size"),
            harness.prune(model, "uniform", keep=0.3),
        ):
            generate(model, inputs, prefill_chunk_size=chunk)
