"""A library that is not what the hooks rely on: a block refuses to begin, or a decoding step stops; no answer is wrong.

Every sabotage is a subclass made on the spot, which a model's part becomes for one test.
"""

import inspect
from functools import wraps
from pathlib import Path

import pytest
import torch
import transformers
from gathered import hooks
from recomputation import Prompt
from test_decoding import BEFORE, INSIDE, generate, show, tiny
from torch import Tensor
from transformers import DynamicCache
from upstream import CACHE, cache_of

import harness
from harness.models import FAMILIES

DECODER = "model.language_model"
METHODS = ["random", "fastv"]  # one cuts before the language model, one inside
NAMES = {"cache": CACHE, "mask": "attention_mask", "positions": "position_ids", "embeddings": "inputs_embeds"}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)[0]


@pytest.fixture(params=["unequal lengths"])
def scene(request, model):
    """The inputs of a batch, and of each of its prompts alone."""
    return show(tiny(model.config.model_type)[1], request.param)


def block(model, method):
    return harness.prune(model, (BEFORE | INSIDE)[method](), keep=0.3)


def replace(monkeypatch, module, forward, signature=None):
    """Let `module` run `forward(plain forward, kwargs)` for this test, under its own signature or another."""
    plain = type(module)

    class Sabotaged(plain):
        @wraps(plain.forward)
        def forward(self, *args, **kwargs):
            assert not args
            return forward(super().forward, kwargs)

    if signature is not None:
        Sabotaged.forward.__signature__ = signature
    monkeypatch.setattr(module, "__class__", Sabotaged)


class TestRenamedArguments:
    """As transformers 5.24 renamed `past_key_values`."""

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("role", NAMES)
    def test_the_block_does_not_begin(self, monkeypatch, model, method, role):
        decoder, name = model.get_submodule(DECODER), NAMES[role]
        known, before = inspect.signature(type(decoder).forward), hooks(model)
        parameters = [one.replace(name=f"new_{name}") if one.name == name else one for one in known.parameters.values()]
        assert [one.name for one in parameters].count(f"new_{name}") == 1

        def forward(plain, kwargs):
            return plain(**{one.removeprefix("new_"): value for one, value in kwargs.items()})

        replace(monkeypatch, decoder, forward, known.replace(parameters=parameters))
        self.refuses(model, method, name)
        assert hooks(model) == before
        monkeypatch.undo()
        with block(model, method):
            pass

    @pytest.mark.parametrize("method", METHODS)
    def test_nor_where_no_argument_has_a_name(self, monkeypatch, model, method):
        def anything(self, *args, **kwargs): ...

        forward = inspect.signature(anything)
        replace(monkeypatch, model.get_submodule(DECODER), lambda plain, kwargs: plain(**kwargs), forward)
        self.refuses(model, method, "")

    def refuses(self, model, method, name):
        with pytest.raises(RuntimeError) as error, block(model, method):
            pytest.fail("the block began")
        message = str(error.value)
        assert "\n" not in message
        for word in (DECODER, name, f"transformers {transformers.__version__}"):
            assert word in message


def copied(cache):
    """A cache of the same keys and values, on which nobody wrote anything."""
    fresh = DynamicCache()
    for number, layer in enumerate(cache.layers):
        fresh.update(layer.keys, layer.values, number)
    return fresh


def without_cache(call):
    call[CACHE] = None


def own_cache(call):
    call[CACHE] = DynamicCache()


def copied_cache(call):
    call[CACHE] = copied(call[CACHE])


def cropped_cache(call):
    call[CACHE].crop(-1)


def cropped_layer(call):
    call[CACHE].layers[-1].crop(-1)


def later_positions(call):
    call["position_ids"] = call["position_ids"] + 1


def earlier_positions(call):
    call["position_ids"] = call["position_ids"] - 1


def short_mask(call):
    assert isinstance(call["attention_mask"], Tensor)
    call["attention_mask"] = call["attention_mask"][:, :-1]


def without_mask(call):
    assert isinstance(call["attention_mask"], Tensor)
    call["attention_mask"] = None


def tampering():
    """Every sabotage of a step, with padding and without; a mask comes with padding alone."""
    padded = [without_cache, own_cache, copied_cache, cropped_cache, later_positions, earlier_positions]
    whole = [*padded, cropped_layer]
    padded += [short_mask, without_mask]
    return [(how, scene) for scene, ways in (("unequal lengths", padded), ("one prompt", whole)) for how in ways]


def is_step(call):
    return call["inputs_embeds"].shape[1] == 1


def stops(model, method, run):
    """Expect that one of our own checks stops `run`, in one line, and no size of a tensor by chance."""

    def answer():
        with block(model, method):
            run()
            pytest.fail("it answered")

    with pytest.raises((RuntimeError, ValueError)) as error:
        answer()
    assert "\n" not in str(error.value)
    assert Path(error.traceback[-1].path).is_relative_to(Path(harness.__file__).parent), error.value


class TestDecodingSteps:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(("tamper", "scene"), tampering(), indirect=["scene"])
    def test_a_step_that_the_decoder_tampers_with(self, monkeypatch, model, scene, tamper, method):
        steps = []

        def forward(plain, kwargs):
            if is_step(kwargs):
                steps.append(1)
                tamper(kwargs)
            return plain(**kwargs)

        replace(monkeypatch, model.get_submodule(DECODER), forward)
        stops(model, method, lambda: generate(model, scene[0]))
        assert len(steps) == 1  # the first one stopped it

    @pytest.mark.parametrize("method", METHODS)
    def test_a_prefill_that_leaves_no_cache(self, monkeypatch, model, scene, method):
        def forward(plain, kwargs):
            return plain(**{**kwargs, CACHE: None, "use_cache": False})

        replace(monkeypatch, model.get_submodule(DECODER), forward)
        stops(model, method, lambda: generate(model, scene[0]))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("step", [0, 2])
    @pytest.mark.parametrize("how", ["copied", "cropped", "emptied"])
    @pytest.mark.parametrize("scene", ["unequal lengths", "one prompt"], indirect=True)
    def test_a_cache_that_changes_between_steps(self, monkeypatch, model, scene, how, step, method):
        passes = []

        def forward(plain, kwargs):
            output = plain(**kwargs)
            passes.append(1)
            if len(passes) == step + 1:
                cache = cache_of(output)
                if how == "cropped":
                    cache.crop(-1)
                else:
                    setattr(output, CACHE, copied(cache) if how == "copied" else DynamicCache())
            return output

        replace(monkeypatch, model, forward)
        stops(model, method, lambda: generate(model, scene[0]))
        assert len(passes) == step + 1

    @pytest.mark.parametrize("method", METHODS)
    def test_a_copied_cache_by_hand(self, model, scene, method):
        inputs = scene[1][0]

        def run():
            cache = copied(cache_of(model(**inputs, use_cache=True)))
            model(input_ids=torch.tensor([[65]]), use_cache=True, **{CACHE: cache})

        stops(model, method, run)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("shift", [-1, 0, 1])
    def test_positions_by_hand(self, model, scene, shift, method):
        inputs = scene[1][0]
        following = Prompt.of(model, inputs).positions[..., -1:] + 1

        def run(**positions):
            cache = cache_of(model(**inputs, use_cache=True))
            return model(input_ids=torch.tensor([[65]]), use_cache=True, **{CACHE: cache}, **positions).logits

        if shift:
            stops(model, method, lambda: run(position_ids=following + shift))
            return
        with block(model, method) as pruning:
            ours = run(position_ids=following)
            pruning.seed(0)
            torch.testing.assert_close(ours, run())

    @pytest.mark.parametrize("method", METHODS)
    def test_a_subclass_alone_is_no_sabotage(self, monkeypatch, model, scene, method):
        with block(model, method):
            _, expected = generate(model, scene[0])
        for module in (model, model.get_submodule(DECODER)):
            replace(monkeypatch, module, lambda plain, kwargs: plain(**kwargs))
        with block(model, method):
            _, answers = generate(model, scene[0])
        assert torch.equal(answers, expected)
