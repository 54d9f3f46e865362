"""Never silently unpruned: a cut that did not happen is an error, and what cannot be cut is refused in one line."""

from dataclasses import dataclass

import pytest
import torch
from reference_prune import generate, hooks, inputs_of
from tiny_models import tiny_qwen
from torch import nn
from transformers_names import CACHE, cache_of

import harness
from harness.models import adapter_for
from harness.models.qwen25vl import Qwen25VL
from harness.models.scorer import VisionSelectorScorer
from methods.base import Method, Selection, Signal


@dataclass(kw_only=True)
class NeedsTheTower(Method):
    """Asks for a signal that another family may lack."""

    needs = frozenset({Signal.VIT_ATTENTION, Signal.IMPORTANCE})


@dataclass(kw_only=True)
class TooEarly(Method):
    """Asks for what is not there yet where it cuts."""

    needs = frozenset({Signal.LLM})
    stage = "input"


def pruned(model, inputs, first=lambda: None, method="uniform", **kwargs):
    """Do something first, then generate, in one block."""
    with harness.prune(model, method, **{"keep": 0.3, **kwargs}):
        first()
        return generate(model, inputs)


class TestNeverSilent:
    def test_a_cut_that_does_not_happen_is_caught(self, model, processor, monkeypatch):
        def keep_all(self, layer, samples, sizes, generators):
            return [Selection(kept=torch.arange(n)) for n, _ in sizes]

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

    def test_a_failed_pass_is_not_made_up_for_by_another_one(self, model, processor):
        inputs, length = inputs_of(processor, ["one image"]), 33
        causal = {"attention_mask": torch.ones(1, 1, length, length), "position_ids": torch.arange(length).view(1, -1)}

        def swallow():
            with pytest.raises(ValueError, match="padding mask"):
                model(**{**inputs, **causal})
            model.model(**inputs)

        with pytest.raises(RuntimeError, match="1 of 3 forward passes"):
            pruned(model, inputs, swallow)

    def test_a_failed_pass_leaves_nothing_behind(self, model, processor, monkeypatch):
        inputs, text = inputs_of(processor, ["one image"]), processor(text=["hello"], return_tensors="pt")
        embeddings = model.get_input_embeddings()(text["input_ids"])
        plain = model.model.language_model(inputs_embeds=embeddings)[0]
        found = []

        def swallow():
            monkeypatch.setattr(model.model.visual, "forward", out_of_memory)
            with pytest.raises(MemoryError):
                model(**inputs)
            monkeypatch.undo()
            found.append(model.model.language_model(inputs_embeds=embeddings)[0])

        with pytest.raises(RuntimeError, match="1 of 2 forward passes"):
            pruned(model, inputs, swallow)
        assert torch.equal(found[0], plain)

    def test_missing_hook_target(self, model):
        with (
            pytest.raises(RuntimeError, match=r"'model.language_model' does not exist in .*\(transformers 5\."),
            harness.prune(_Wrapper(model), "uniform", keep=0.5),
        ):
            pass


def out_of_memory(*args, **kwargs):
    raise MemoryError


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

    def test_embeddings_without_ids(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        types = inputs["mm_token_type_ids"]
        self.refuses(model, "input_ids.*text alone", lambda: model(inputs_embeds=embeddings))
        self.refuses(model, "input_ids", lambda: model(inputs_embeds=embeddings, mm_token_type_ids=types))

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

    @pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seq_lens_k"])
    def test_packed_sequences_by_their_lengths(self, model, processor, name):
        inputs, lengths = inputs_of(processor, ["one image"]), torch.tensor([0, 29, 33], dtype=torch.int32)
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, name: lengths}), with_kwargs=True
        )
        try:
            self.refuses(model, "packed sequences", lambda: model(**inputs))
        finally:
            handle.remove()

    def test_masks_by_type_of_layer(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        length = inputs["input_ids"].shape[1]
        masks = {"full_attention": torch.ones(1, 1, length, length).tril().log()}
        positions = torch.arange(length).expand(3, 1, -1)
        whole = {**inputs, "attention_mask": masks, "position_ids": positions}
        self.refuses(model, "padding mask .* got one as dict", lambda: model(**whole))

    def test_an_image_on_a_cache_that_was_pruned_where_nothing_is_dropped(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        with harness.prune(model, "uniform", keep=0.3):
            cache = cache_of(model(**inputs, use_cache=True))
        positions = torch.arange(33).expand(3, 1, -1)
        again = {**inputs, "position_ids": positions, CACHE: cache}
        del again["attention_mask"]
        self.refuses(model, "an image after a cached prefix", lambda: model(**again), method="none", keep=1.0)

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
            (NeedsTheTower(), {"lam": 0.5}, "already an instance"),
        ],
    )
    def test_wrong_arguments(self, model, method, kwargs, message):
        self.refuses(model, message, lambda: None, method=method, **kwargs)

    def test_a_signal_that_the_family_lacks(self, model, monkeypatch):
        monkeypatch.setattr(Qwen25VL, "supplies", frozenset({Signal.IMPORTANCE}))
        monkeypatch.setattr(Qwen25VL, "lacks", {Signal.VIT_ATTENTION: "it has no eyes"})
        message = r"vit_attention, which family qwen2_5_vl cannot supply \(it has: importance; it has no eyes\)"
        self.refuses(model, message, lambda: None, method=NeedsTheTower())

    def test_reading_a_layer_but_cutting_before_it(self, model):
        self.refuses(model, "reads a decoder layer, so it must cut after one", lambda: None, method=TooEarly())

    def test_unknown_family(self):
        with pytest.raises(ValueError, match=r"no adapter for Linear .* qwen2_5_vl"):
            adapter_for(nn.Linear(2, 2))
