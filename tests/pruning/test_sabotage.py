"""A library that is not what the hooks rely on: a block refuses to begin, or a decoding step stops; no answer is wrong.

Every sabotage is a subclass made on the spot, which a model's part becomes for one test.
"""

import inspect
from functools import wraps
from pathlib import Path

import pytest
import torch
import transformers
from reference_prune import hooks
from test_decoding import BEFORE, INSIDE, generate, show, tiny
from torch import Tensor
from transformers import DynamicCache
from transformers_names import CACHE, cache_of
from uncached_reference import Prompt

import harness
from harness.models import FAMILIES
from harness.models.calls import HookError
from harness.pruning.steps import DeferredErrors

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


def hooked(family):
    """Return which arguments a block of "fastv_paper" requires, by hooked part: it cuts before the MLP of layer 0.

    Of the language model only those that are not in `NAMES`.
    """
    layer = f"hidden_states attention_mask position_ids {CACHE} position_embeddings"
    attention = "hidden_states attention_mask position_embeddings"
    parts = {
        "": f"input_ids inputs_embeds {CACHE} pixel_values",
        "model": f"input_ids inputs_embeds attention_mask position_ids {CACHE} pixel_values",
        DECODER: "use_cache",
        f"{DECODER}.rotary_emb": "position_ids",
        **{f"{DECODER}.layers.{number}": layer for number in (0, 1)},
        **{f"{DECODER}.layers.{number}.self_attn": attention for number in (0, 1)},
        f"{DECODER}.layers.0.mlp": "x",
    }
    if family in ("llava_next", "llava_onevision"):
        parts["model"] += " image_sizes"
    if family in ("llava", "llava_next", "internvl"):
        return parts | {"model.vision_tower": "pixel_values"}
    parts[""] += " pixel_values_videos"
    if family == "llava_onevision":
        parts["model"] += " pixel_values_videos batch_num_images"
        return parts | {"model.vision_tower": "pixel_values"}
    parts["model"] += " pixel_values_videos image_grid_thw video_grid_thw"
    parts["model.visual"] = "grid_thw"
    if family == "qwen3_vl":
        parts[DECODER] += " visual_pos_masks deepstack_visual_embeds"
    return parts


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

    @pytest.mark.parametrize("family", FAMILIES)
    def test_nor_where_any_other_hooked_part_has_another_name(self, monkeypatch, family):
        model = tiny(family)[0]
        for part, names in hooked(family).items():
            module = model.get_submodule(part)
            known = inspect.signature(type(module).forward)
            for name in names.split():
                assert name in known.parameters
                parameters = [p.replace(name=f"new_{name}") if p.name == name else p for p in known.parameters.values()]
                with monkeypatch.context() as patch:
                    replace(patch, module, lambda plain, kwargs: plain(**kwargs), known.replace(parameters=parameters))
                    self.refuses(model, "fastv_paper", name, part or "the model")

    def refuses(self, model, method, name, part=DECODER):
        with pytest.raises(RuntimeError) as error, block(model, method):
            pytest.fail(f"the block began without {name} of {part}")
        message = str(error.value)
        assert "\n" not in message
        for word in (part, name, f"transformers {transformers.__version__}"):
            assert word in message


def copied(cache):
    """A cache of the same keys and values, on which nobody wrote anything."""
    fresh = DynamicCache()
    for number, layer in enumerate(cache.layers):
        fresh.update(layer.keys, layer.values, number)
    return fresh


def without_cache(call):
    call |= {CACHE: None, "use_cache": False}


def own_cache(call):
    call[CACHE] = DynamicCache()


def copied_cache(call):
    call[CACHE] = copied(call[CACHE])


def cropped_cache(call):
    call[CACHE].crop(-1)


def cropped_first_layer(call):
    call[CACHE].layers[0].crop(-1)


def cropped_last_layer(call):
    call[CACHE].layers[-1].crop(-1)


def later_positions(call):
    call["position_ids"] = call["position_ids"] + 1


def earlier_positions(call):
    call["position_ids"] = call["position_ids"] - 1


def short_mask(call):
    assert isinstance(call["attention_mask"], Tensor)
    call["attention_mask"] = call["attention_mask"][:, :-1]


def open_mask(call):
    assert isinstance(call["attention_mask"], Tensor)
    call["attention_mask"] = call["attention_mask"].index_fill(1, torch.tensor([0]), 1)  # the rest stays hidden


def without_mask(call):
    assert isinstance(call["attention_mask"], Tensor)
    call["attention_mask"] = None


STOPPED_BY = {
    without_cache: "got no key-value cache in a step on a pruned one",
    own_cache: "got another key-value cache",
    copied_cache: "got another key-value cache",
    cropped_cache: "got a mask over .* keys in a step that ends at|cached positions in layers",
    cropped_first_layer: "cached positions in layers",
    cropped_last_layer: "cached positions in layers",
    later_positions: "got other positions than the cut implies",
    earlier_positions: "got other positions than the cut implies",
    short_mask: "got a mask that hides tokens",
    open_mask: "got a mask that .* shows padding",
    without_mask: "got no mask over the padding",
}


def tampering():
    """Every sabotage of a step, with padding and without; a mask comes with padding alone."""
    padded = [without_cache, own_cache, copied_cache, cropped_cache, later_positions, earlier_positions]
    whole = [*padded, cropped_first_layer, cropped_last_layer]
    padded += [short_mask, open_mask, without_mask]
    return [(how, scene) for scene, ways in (("unequal lengths", padded), ("one prompt", whole)) for how in ways]


def is_step(call):
    return call["inputs_embeds"].shape[1] == 1


def stops(model, method, run, message=None):
    """Expect that one of our own checks stops `run` with `message` in one line, and no size of a tensor by chance."""

    def answer():
        with block(model, method):
            run()
            pytest.fail("it answered")

    with pytest.raises((RuntimeError, ValueError), match=message) as error:
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
        stops(model, method, lambda: generate(model, scene[0]), STOPPED_BY[tamper])
        assert len(steps) == 1  # the first one stopped it

    @pytest.mark.parametrize("method", METHODS)
    def test_a_prefill_that_leaves_no_cache(self, monkeypatch, model, scene, method):
        def forward(plain, kwargs):
            return plain(**{**kwargs, CACHE: None, "use_cache": False})

        replace(monkeypatch, model.get_submodule(DECODER), forward)
        stops(model, method, lambda: generate(model, scene[0]))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(
        ("given", "returned"),
        [({"use_cache": True}, False), ({CACHE: DynamicCache}, False), ({}, True)],
        ids=["asked for", "handed over", "returned"],
    )
    def test_a_prefill_by_hand_that_leaves_no_cache(self, monkeypatch, model, scene, given, returned, method):
        given = {name: value() if value is DynamicCache else value for name, value in given.items()}

        def forward(plain, kwargs):
            output = plain(**{**kwargs, CACHE: None, "use_cache": False})
            if returned:
                setattr(output, CACHE, DynamicCache())
            return output

        replace(monkeypatch, model.get_submodule(DECODER), forward)
        stops(model, method, lambda: model(**scene[0], **given))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("how", ["copied", "cropped", "cropped layer"])
    def test_a_prefill_that_leaves_another_cache(self, monkeypatch, model, scene, how, method):
        def forward(plain, kwargs):
            output = plain(**kwargs)
            cache = cache_of(output)
            if how == "copied":
                setattr(output, CACHE, copied(cache))
            else:
                (cache if how == "cropped" else cache.layers[0]).crop(-1)
            return output

        replace(monkeypatch, model.get_submodule(DECODER), forward)
        stops(model, method, lambda: model(**scene[0], use_cache=True))

    @pytest.mark.parametrize("method", METHODS)
    def test_steps_that_go_round_the_hooks_of_the_decoder(self, monkeypatch, model, scene, method):
        decoder = model.get_submodule(DECODER)
        plain = type(decoder)

        class Sabotaged(plain):
            def __call__(self, *args, **kwargs):
                return self.forward(*args, **kwargs) if is_step(kwargs) else super().__call__(*args, **kwargs)

        monkeypatch.setattr(decoder, "__class__", Sabotaged)
        stops(model, method, lambda: generate(model, scene[0]))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("name", ["mm_token_type_ids", "token_type_ids"])
    def test_kinds_of_tokens_that_reach_the_decoder(self, monkeypatch, model, scene, name, method):
        """A decoder that lets the tokens of an image see each other would take them for those of other rows."""
        decoder = model.get_submodule(DECODER)
        plain = type(decoder)

        class Sabotaged(plain):
            def __call__(self, *args, **kwargs):
                kinds = torch.ones(kwargs["inputs_embeds"].shape[:2], dtype=torch.long)
                return super().__call__(*args, **kwargs, **{name: kinds})

        monkeypatch.setattr(decoder, "__class__", Sabotaged)
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

    @pytest.mark.parametrize("moment", ["leaving", "prefill", "take"])
    def test_what_a_gpu_is_not_asked_at_once(self, monkeypatch, model, scene, moment):
        """It is raised at the end of the block at the latest, and before anybody reads the records of a batch."""

        def add(self, wrong, error):
            self._open[str(error)] = wrong | self._open.get(str(error), (wrong, error))[0], error

        def forward(plain, kwargs):
            if is_step(kwargs):
                later_positions(kwargs)
            return plain(**kwargs)

        monkeypatch.setattr(DeferredErrors, "add", add)
        replace(monkeypatch, model.get_submodule(DECODER), forward)

        def run():
            with block(model, "random") as pruning:
                generate(model, scene[0])
                if moment == "prefill":
                    model(**scene[0])
                elif moment == "take":
                    pruning.take()
                assert moment == "leaving", "nothing was raised"

        with pytest.raises(HookError, match="other positions than the cut implies"):
            run()

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


def test_hooks_that_other_code_removes_are_missed_when_the_block_ends(model, scene):
    whole, *_ = scene
    pruned = block(model, "random")  # without hooks, the pass of "fastv" may raise before
    pruned.__enter__()
    for module in model.modules():
        for kept in (module._forward_hooks, module._forward_pre_hooks):  # transformers reads hidden states by its own
            for key in [key for key, hook in kept.items() if type(hook).__module__ == "harness.models.hooks"]:
                del kept[key]
    model(**whole)
    with pytest.raises(HookError, match="other code removed hooks within the prune block"):
        pruned.__exit__(None, None, None)
