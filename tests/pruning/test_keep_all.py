"""Where nothing is dropped, the model in a `prune` block is the plain model, bit for bit, and afterwards too."""

import pytest
import torch
from reference_prune import generate, hooks, inputs_of
from tiny_models import tiny_qwen
from transformers import StaticCache

import harness
from harness.models.calls import NonFiniteError
from harness.models.scorer import VisionSelectorScorer


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

    @torch.no_grad()
    def test_text_alone_as_embeddings_passes_through(self, model, processor):
        inputs = processor(text=["hello"], return_tensors="pt")
        embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
        plain = model(inputs_embeds=embeddings, **inputs).logits
        with harness.prune(model, "uniform", keep=0.1) as pruning:
            assert torch.equal(model(inputs_embeds=embeddings, **inputs).logits, plain)
        assert pruning.records == []


class TestKeepingAllNeedsNothing:
    """What pruning refuses is no obstacle where there is nothing to prune."""

    def equal(self, model, call, n=20, **budget):
        plain = call()
        with harness.prune(model, "uniform", **(budget or {"keep": 1.0})) as pruning:
            again = call()
        assert plain == again if isinstance(plain, list) else torch.equal(plain, again)
        assert {(record.n, record.k) for record in pruning.records} == {(n, n)}
        refused = r"cannot be pruned|pruning needs|do not fit|would prune"
        with pytest.raises(ValueError, match=refused), harness.prune(model, "uniform", keep=0.3):
            call()

    @torch.no_grad()
    def test_labels(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        self.equal(model, lambda: model(**inputs, labels=inputs["input_ids"]).loss)
        self.equal(model, lambda: model(**inputs, labels=inputs["input_ids"]).loss, tokens=20)

    @torch.no_grad()
    def test_generation_without_cache(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        self.equal(model, lambda: generate(model, inputs, use_cache=False))

    @torch.no_grad()
    def test_static_cache(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        self.equal(model, lambda: generate(model, inputs, cache_implementation="static"))

        def forward():
            cache = StaticCache(config=model.config.get_text_config(), max_cache_len=200)
            return model(**inputs, past_key_values=cache).logits

        self.equal(model, forward)

    @torch.no_grad()
    def test_a_4d_mask(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        length = inputs["input_ids"].shape[1]
        inputs["attention_mask"] = torch.ones(1, 1, length, length).tril().log()
        inputs["position_ids"] = torch.arange(length).expand(3, 1, -1)
        self.equal(model, lambda: model(**inputs).logits)

    @torch.no_grad()
    def test_an_image_after_a_cached_prefix(self, model, processor):
        text, image = processor(text=["hello"], return_tensors="pt"), inputs_of(processor, ["one image"])
        del image["attention_mask"]

        def two_turns():
            cache = model(**text, use_cache=True).past_key_values
            return model(**image, past_key_values=cache).logits

        self.equal(model, two_turns)

    @torch.no_grad()
    def test_but_not_after_a_pruned_prefix(self, model, processor):
        large, small = inputs_of(processor, ["one image"]), inputs_of(processor, ["small image"])
        with harness.prune(model, "uniform", tokens=6):
            cache = model(**large, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="cached prefix"), harness.prune(model, "uniform", tokens=6):
            model(**small, past_key_values=cache)  # its 6 tokens would all stay

    @torch.no_grad()
    def test_a_tower_that_overflows(self, processor):
        model, inputs = tiny_qwen(dtype=torch.float16), inputs_of(processor, ["one image"])
        for parameter in model.model.visual.merger.parameters():
            parameter.mul_(300)
        plain = model(**inputs).logits
        assert bool(plain.isnan().any())
        overflow = pytest.raises(NonFiniteError, match=r"not finite in a prefill \(float16\)")
        with overflow, harness.prune(model, "uniform", keep=1.0):  # no method has choked on it before
            model(**inputs)

    @torch.no_grad()
    def test_no_scorer(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        plain = generate(model, inputs)
        with harness.prune(model, "idpruner", keep=1.0):
            assert generate(model, inputs) == plain

    @torch.no_grad()
    def test_a_scorer_is_not_asked(self, model, processor):
        scorer = VisionSelectorScorer(64, 8)
        scorer.forward = lambda features: pytest.fail("the scorer was asked")
        with harness.prune(model, "visionselector", tokens=20, scorer=scorer):
            model(**inputs_of(processor, ["one image"]))
