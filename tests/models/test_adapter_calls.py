"""Arguments of upstream calls are read by role in one place, and refused where no known name fits."""

import ast
import re
from pathlib import Path

import pytest
import torch
from tiny_families import BUILDERS
from torch import nn
from transformers import DynamicCache

import harness
from harness.models import FAMILIES, adapter_for
from harness.models.calls import NAMES, Arguments, CallSite, HookError, returned_cache

HARNESS = Path(harness.__file__).parent
# Where names of arguments are no look-up on a call that a library made: they define or make calls themselves.
MAKES_CALLS = {
    "models/calls.py",
    "models/compat.py",
    "models/preprocessing.py",  # counts tokens of what a processor made
    "pruning/decoding_proof.py",  # prolongs what a processor made
    "models/llavaov15/modeling.py",  # our port: its forward passes call each other
    "analyze/masks.py",  # makes inputs, and cuts them off the answers
    "bench/measure.py",  # the bench makes inputs, and looks at their size
    "bench/output.py",
    "bench/workloads.py",
    "report/crops.py",  # shows what a processor made
    "evaluation/lmms_model.py",  # counts tokens of what a processor made
    "report/images.py",  # shows what a processor made
    "train/batches.py",  # joins what a processor made
}


class Takes(nn.Module):
    """A module with one argument of each name, and room for more."""

    def forward(self, hidden_states, past_key_values=None, attention_mask=None, **kwargs):
        return hidden_states, past_key_values, attention_mask, kwargs


class Renamed(Takes):
    """The same after a minor release."""

    def forward(self, hidden_states, cache=None, attention_mask=None, **kwargs):
        return hidden_states, cache, attention_mask, kwargs


ROLES = Arguments.of("states cache mask", "cache_position encoded")


@pytest.mark.parametrize("module", [Takes(), Renamed()])
def test_a_role_is_read_under_every_name_that_it_has(module):
    site = CallSite(module, "decoder", ROLES)
    for name in NAMES["cache"]:  # an old name may reach a hook before the library translates it
        assert site.read((1,), {name: 2})["cache"] == 2
    call = site.read((1, 2, 3), {})
    assert dict(call) == {"states": 1, "cache": 2, "mask": 3}
    assert call.get("encoded") is None
    args, kwargs = site.read((1,), {"past_key_values": 2}).changed({"cache": 4, "mask": 5})
    assert module(*args, **kwargs) == (1, 4, 5, {})


def test_what_was_not_passed_is_absent_or_an_error():
    call = CallSite(Takes(), "decoder", ROLES).read((1,), {"attention_mask": None})
    assert "mask" not in call
    with pytest.raises(HookError, match=r"^decoder \(Takes, transformers \S+\) was called without attention_mask"):
        call.require("mask")
    with pytest.raises(HookError, match="role 'image' was not declared"):
        call.get("image")


class Both(Takes):
    """A release that takes the old name beside the new one: which of them counts, nobody knows."""

    def forward(self, hidden_states, past_key_values=None, cache=None):
        return hidden_states, past_key_values, cache


@pytest.mark.parametrize("roles", [Arguments.of("cache"), Arguments.of("", "cache")])
def test_a_module_with_two_names_of_a_role_is_refused(roles):
    with pytest.raises(HookError, match=r"role 'cache' needs one argument .* it takes past_key_values and cache"):
        CallSite(Both(), "decoder", roles)


class TakesMore(nn.Module):
    """A module with arguments that have no name."""

    def forward(self, hidden_states, *more, **kwargs):
        return hidden_states, more


def test_an_argument_by_position_that_has_no_name_is_refused():
    site = CallSite(TakesMore(), "decoder", Arguments.of("states"))
    assert site.read((1,), {})["states"] == 1
    with pytest.raises(HookError, match="called with 2 arguments by position, 1 have names"):
        site.read((1, 2), {})


def test_two_names_at_once_are_refused():
    with pytest.raises(HookError, match="past_key_values and cache: pass one"):
        CallSite(Takes(), "decoder", ROLES).read((1,), {"past_key_values": 2, "cache": 3})


def test_an_argument_that_is_optional_may_come_among_the_others():
    call = CallSite(Takes(), "decoder", ROLES).read((1,), {"cache_position": 7})
    assert call["cache_position"] == 7
    assert call.changed({"cache_position": None})[1]["cache_position"] is None
    with pytest.raises(HookError, match="takes no mm_encoder_outputs"):
        call.changed({"encoded": 1})


@pytest.mark.parametrize("shape", [[9], [2, 9], [3, 2, 9], [2, 9, 4]])
def test_an_unknown_argument_with_an_entry_per_token_is_refused(shape):
    call = CallSite(Takes(), "decoder", ROLES).read((torch.zeros(2, 9, 4),), {"bias": torch.zeros(shape)})
    with pytest.raises(HookError, match=rf"got bias of shape {re.escape(str(shape))}"):
        call.refuse_unknown_rows(9)
    call.refuse_unknown_rows(8)


def test_a_required_role_without_a_known_name_is_refused_in_one_line():
    with pytest.raises(HookError) as refused:
        CallSite(Takes(), "model.layers.0", Arguments.of("rotation"))
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("model.layers.0 (Takes, transformers ")
    assert "role 'rotation' needs one argument named position_embeddings" in message
    assert "it takes hidden_states, past_key_values, attention_mask" in message


@pytest.mark.parametrize("output", [(1, "no cache"), {"logits": 1}, None])
def test_an_output_without_a_cache(output):
    assert returned_cache(output) is None


def test_the_cache_in_an_output():
    cache = DynamicCache()
    for output in [*({"logits": 1, name: cache} for name in NAMES["cache"]), (1, cache)]:
        assert returned_cache(output) is cache


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_every_family_takes_what_is_declared(family):
    adapter = adapter_for(BUILDERS[family][0]())
    layer = adapter.targets["first_layer"]
    for part in ("root", "multimodal", "vision", "decoder"):
        assert adapter.site(part).arguments.required <= adapter.site(part).names.keys()
    for part, path in {"layer": layer, "attention": f"{layer}.self_attn", "mlp": f"{layer}.mlp"}.items():
        assert adapter.site(part, path).arguments.required == adapter.site(part, path).names.keys() - {"cache_position"}
    assert "positions" in adapter.site("rotary", adapter.decoder.rotary).names


def lookups(tree):
    """The constant keys of subscripts and of `get` calls, and attributes, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            yield node.slice.value, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            yield from ((arg.value, node.lineno) for arg in node.args[:1] if isinstance(arg, ast.Constant))
        elif isinstance(node, ast.Attribute) and node.attr in NAMES["cache"][:1]:
            yield node.attr, node.lineno


def test_nobody_else_looks_an_upstream_argument_up():
    names = {name for known in NAMES.values() for name in known} - NAMES.keys()  # roles are read everywhere
    others = [
        f"{path.relative_to(HARNESS)}:{line} {name}"
        for path in sorted(HARNESS.rglob("*.py"))
        if str(path.relative_to(HARNESS)) not in MAKES_CALLS and "pocket" not in path.parts
        for name, line in lookups(ast.parse(path.read_text(encoding="utf-8")))
        if name in names
    ]
    assert others == []


def test_that_search_finds_a_look_up():
    tree = ast.parse('call.get("past_key_values"); kwargs["position_ids"]; output.past_key_values')
    assert [name for name, _ in lookups(tree)] == ["past_key_values", "position_ids", "past_key_values"]
