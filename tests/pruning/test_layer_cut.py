"""Cuts between decoder layers: what they cost, what they refuse, and what is undone after a failure."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from accelerate import cpu_offload
from probes import Keys, MergeInside, Stages
from reference_prune import generate, hooks, inputs_of
from tiny_families import tiny
from tiny_models import tiny_qwen
from uncached_reference import Cut, Prompt

import harness
from harness.models import FAMILIES, adapter_class
from methods.base import Selection, Signal

LAYERS = 4


@pytest.fixture(scope="module")
def deep():
    return tiny_qwen(layers=LAYERS)


@dataclass(kw_only=True)
class Positions(Stages):
    """Note the state of each layer that is read, and whether its q and k have rotary positions."""

    needs = frozenset({Signal.LLM, Signal.TEXT_AFTER})

    turned: bool = True
    seen: list = field(default_factory=list)

    @property
    def rotated(self):
        return self.turned

    def _select(self, tokens, k, generator):
        self.seen.append((tokens.llm, tokens.text_after))
        return Selection(torch.linspace(0, len(tokens.features) - 1, k).long())


@pytest.mark.parametrize("of_next", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rotated_ones_are_the_rotary_positions_of_the_rows_that_are_left(family, of_next):
    (model, processor), states = tiny(family), []
    for turned in (False, True):
        method = Positions(of_next=of_next, turned=turned)
        with harness.prune(model, method, keep=0.3):
            model(**inputs_of(processor, ["one image", "adjacent"]))
        states.append(method.seen)
    assert len(states[0]) == len(states[1]) == 6
    behind = {}  # by length of the prompt: rows behind the picture that are no text
    for (plain, text), (turned, _) in zip(*states, strict=True):
        first, second = turned.rotated_ones.double().chunk(2, dim=-1)
        cos, sin = (((second + sign * first) / 2).repeat(1, 2) for sign in (1, -1))
        for part in ("q", "k"):
            x = getattr(plain, part)
            half = torch.cat([-x.chunk(2, dim=-1)[1], x.chunk(2, dim=-1)[0]], dim=-1)
            torch.testing.assert_close(getattr(turned, part), x * cos + half * sin, atol=1e-5, rtol=1e-4)
        behind[len(turned.hidden)] = turned.q.shape[1] - 1 - int(turned.visual_idx[-1]) - len(text)
    newlines = adapter_class(family).has_newlines  # the last of them goes with the first cut
    assert set(behind.values()) == ({0, 1} if newlines else {0})


class TestOtherCuts:
    @torch.no_grad()
    def test_it_is_another_cut_than_at_the_input(self, deep, processor):
        inputs, found = inputs_of(processor, ["one image"]), []
        for layer in range(LAYERS - 1):
            with harness.prune(deep, MergeInside(layer=layer), tokens=3):
                found.append(deep(**inputs).logits[0, -1])
        assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(found))

    def test_merging_before_the_mlp_is_refused(self, deep, processor):
        with (
            pytest.raises(ValueError, match="merges, which needs the cut after"),
            harness.prune(deep, MergeInside(variant="paper"), tokens=3),
        ):
            deep(**inputs_of(processor, ["one image"]))


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
        rows = Prompt.of(deep, inputs).logits(deep, Cut(1, torch.tensor(pruning.records[0].kept)), answer[0])
        steps = rows[-len(answer[0]) - 1 : -1].softmax(-1)
        torch.manual_seed(3)
        assert answer[0] == [int(torch.multinomial(step, 1)) for step in steps]

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
    def test_a_cut_that_does_not_happen_is_caught(self, deep, processor, monkeypatch):
        def keep_all(self, layer, samples, sizes, generators):
            return [Selection(kept=torch.arange(n)) for n, _ in sizes]

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
            (Keys(layer=LAYERS - 1), "has 4 layers, so 2 is the last with one after it"),
            (Keys(layer=40), "cuts after decoder layer 40"),
        ],
    )
    def test_layers_that_are_not_there(self, deep, method, message):
        with pytest.raises(ValueError, match=message), harness.prune(deep, method, keep=0.3):
            pass


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
