"""A mistake in a class, in what it reads or in what it returns is one line with its remedy and the author's line."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from authors import keep_first, message, method_that, place

import harness
import methods
from methods.base import Method, Selection, Signal, Tokens
from methods.observe import Operations
from methods.samples import make_tokens
from methods.scores import top
from methods.selecting import SelectionError
from methods.testing import check_contract


class TestDeclarations:
    """Mistakes in a class are found when it is loaded or built, before any model is."""

    @pytest.mark.parametrize("needs", [{"vit_attention"}, "vit_attention", ["vit_attention"], ("vit_attention",)])
    def test_needs_that_hold_no_signals(self, needs):
        line = message(method_that, keep_first, needs=needs)
        assert line.startswith(f"Theirs.needs must be a set of Signal, not {needs!r}")
        assert line.endswith("write needs = frozenset({Signal.VIT_ATTENTION})")

    @pytest.mark.parametrize("needs", [None, 3, {"attention"}, {Signal.TEXT, "attention"}])
    def test_needs_that_no_signal_is_called(self, needs):
        assert "must be a set of Signal" in message(method_that, keep_first, needs=needs)

    def test_needs_of_an_instance(self):
        method = method_that(keep_first)
        vars(method)["needs"] = {"text"}
        assert "write needs = frozenset({Signal.TEXT})" in message(method.select, make_tokens(6), 3)

    def test_needs_that_are_computed(self, tmp_path):
        text = """from methods.base import Method


class Mine(Method):
    @property
    def needs(self):
        return frozenset({"text"})
"""
        (tmp_path / "mine.py").write_text(text)
        assert "write needs = frozenset({Signal.TEXT})" in message(methods.load, f"{tmp_path}/mine.py:Mine")

    @pytest.mark.parametrize("version", ["1", 1.0, True, -1, None])
    def test_a_version_that_counts_nothing(self, version):
        assert "version must be a whole number" in message(method_that, keep_first, version=version)

    def test_a_missing_decorator(self, tmp_path):
        text = "from methods.base import Method\n\n\nclass Mine(Method):\n    share: float = 1.0\n"
        (tmp_path / "mine.py").write_text(text)
        for params in ({}, {"share": 0.5}):
            line = message(methods.load, f"{tmp_path}/mine.py:Mine", **params)
            assert line.startswith("Mine.share is annotated")
            assert line.endswith("put @dataclass(kw_only=True) above the class")
        (tmp_path / "mine.py").write_text("from __future__ import annotations\n" + text)
        assert "@dataclass" in message(methods.load, f"{tmp_path}/mine.py:Mine")

    def test_a_class_without_parameters_needs_no_decorator(self):
        class Plain(Method):
            table: ClassVar[int] = 3

        assert Plain().table == 3

    def test_a_subclass_of_a_method_has_to_be_decorated_too(self):
        class Finer(methods.get("idpruner")):
            steps: int = 3

        assert message(Finer).startswith("Finer.steps is annotated")
        assert dataclass(kw_only=True)(Finer)().steps == 3

    def test_an_attribute_without_annotation(self, tmp_path):
        (tmp_path / "mine.py").write_text("from methods.base import Method\n\n\nclass Mine(Method):\n    share = 1.0\n")
        line = message(methods.load, f"{tmp_path}/mine.py:Mine", share=0.5)
        assert line.endswith("it has none; to make one of the attribute share, annotate it (share: float = ...)")

    def test_arguments_that_are_missing(self):
        class Short(Method):
            def _select(self, tokens, k):
                return Selection(torch.arange(k))

        says = "Short._select cannot take (self, tokens, k): it is called with (self, tokens, k, generator)"
        assert message(Short) == says

    def test_no_selection(self):
        assert "it has no _select(self, tokens, k, generator)" in message(Method().select, make_tokens(6), 3)

    def test_a_class_instead_of_an_instance(self, model):
        uniform = methods.get("uniform")
        assert message(check_contract, uniform, error=TypeError).endswith("write Uniform()")

        def enter(method):
            with harness.prune(model, method, keep=0.5):
                pass

        assert message(enter, uniform).endswith("write Uniform()")
        assert "not None: there are none, random" in message(enter, None)


class TestSignals:
    def test_one_that_is_not_declared_cannot_be_read(self):
        class Reads(Method):
            def _select(self, tokens, k, generator):
                return Selection.of(top(tokens.vit_attention["last"], k))  # reads it

        line = message(Reads().select, make_tokens(6), 3, error=SelectionError)
        says = "reads broke its contract: it reads tokens.vit_attention, which it does not declare"
        assert line.startswith(f"{says}: add Signal.VIT_ATTENTION to needs (")
        assert line.endswith(place("# reads it"))
        declared = type("Declared", (Reads,), {"needs": {Signal.VIT_ATTENTION}})
        assert len(declared().select(make_tokens(6), 3).kept) == 3

    @pytest.mark.parametrize("signal", Signal)
    def test_every_signal_is_guarded_and_none_that_is_declared(self, signal):
        method = method_that(lambda tokens, k, _: getattr(tokens, signal) and keep_first(tokens, k, _))
        assert f"add Signal.{signal.name} to needs" in message(method.select, make_tokens(6), 3)
        read = []
        keeps = method_that(
            lambda tokens, k, _: read.append(getattr(tokens, signal)) or keep_first(tokens, k, _), needs={signal}
        )
        keeps.select(make_tokens(6), 3)
        assert read[0] is not None

    def test_a_method_may_pass_its_own_scores_on_to_another(self):
        greedy, uniform = methods.load("greedy"), methods.load("uniform")

        def delegates(tokens, k, generator):
            uniform.select(replace(tokens, features=tokens.features * 2), k)
            return greedy.select(replace(tokens, importance=tokens.features[:, 0]), k)

        tokens = make_tokens(9)
        expected = top(tokens.features[:, 0], 4).tolist()
        assert method_that(delegates).select(tokens, 4).order.tolist() == expected

    def test_another_method_reads_only_what_the_outer_one_declares(self):
        greedy = methods.load("greedy")
        outer = method_that(lambda tokens, k, generator: greedy.select(tokens, k))
        assert "theirs broke its contract: it reads tokens.importance" in message(outer.select, make_tokens(9), 4)

    def test_after_the_selection_its_tokens_are_plain(self):
        seen = []
        method_that(lambda *job: seen.append(job[0]) or keep_first(*job)).select(make_tokens(6), 3)
        assert seen[0].importance is None
        assert len(replace(seen[0], importance=torch.ones(6)).importance) == 6


class TestResults:
    @pytest.mark.parametrize(
        ("result", "says"),
        [
            (
                lambda: Selection.of([0, 1, 2]),
                "Selection.of expects a tensor [K] of int64 indices, not a list: pass",
            ),
            (lambda: torch.tensor([0, 1, 2]), "_select must return a Selection, not a Tensor: return Selection.of("),
            (lambda: None, "_select must return a Selection, not a NoneType"),
            (lambda: Selection([0, 1, 2]), "kept must be 3 int64 indices, not a list: return a tensor on cpu"),
            (lambda: Selection(torch.arange(3), order=(0, 1, 2)), "order must be 3 int64 indices, not a tuple"),
            (lambda: Selection(torch.arange(3), owner=[0] * 6), "owner must be 6 int64 indices, not a list"),
            (lambda: Selection(torch.arange(2)), "kept must be 3 int64 indices, not [2]: return exactly k of them"),
            (lambda: Selection(torch.arange(4)), "kept must be 3 int64 indices, not [4]: return exactly k of them"),
            (lambda: Selection(torch.arange(3)[None]), "kept must be 3 int64 indices, not [1, 3]"),
            (lambda: Selection(torch.arange(3).int()), "not [3] of torch.int32: convert positions with .long()"),
            (lambda: Selection.of(torch.arange(3.0)), "not [3] of torch.float32: convert positions with .long()"),
            (lambda: Selection(torch.tensor([0, 2, 2])), "only 2 distinct ones of 3: exclude what is picked"),
            (lambda: Selection(torch.tensor([2, 1, 0])), "not ascending: return Selection.of(indices)"),
            (lambda: Selection(torch.tensor([0, 1, 6])), "kept holds an index outside 0..5: they count"),
            (lambda: Selection(torch.tensor([-1, 0, 1])), "kept holds an index outside 0..5"),
            (
                lambda: Selection(torch.arange(3), order=torch.tensor([0, 1, 3])),
                "order and kept hold different",
            ),
            (lambda: Selection(torch.arange(3), order=torch.tensor([0, 1, 9])), "order holds an index outside 0..5"),
            (
                lambda: Selection(torch.arange(3), owner=torch.arange(6)),
                "owner holds an index outside 0..2: owners",
            ),
            (lambda: Selection(torch.arange(3), owner=torch.arange(3)), "owner must be 6 int64 indices, not [3]: name"),
            (
                lambda: Selection(torch.arange(3, device="meta")),
                "kept must be on cpu like the features, not on meta: create it with device=tokens.features.device",
            ),
        ],
    )
    def test_one_that_breaks_the_contract(self, result, says):
        def returns(self, tokens, k, generator):  # defines the result
            return result()

        method = type("Broken", (Method,), {"_select": returns})()
        line = message(method.select, make_tokens(6), 3, error=SelectionError)
        assert line.startswith("broken broke its contract: ")
        assert says in line
        assert re.search(rf"\(\S*{Path(__file__).name}:\d+\)$", line)
        if not says.startswith("Selection.of expects"):
            assert line.endswith(place("# defines the result"))

    @pytest.mark.parametrize("chosen", [[], [keep_first(None, 3, None)], None])
    def test_one_selection_for_each_sample(self, chosen):
        method = type("Broken", (Method,), {"_select_batch": lambda self, samples, ks, generators: chosen})()
        samples = [make_tokens(6), make_tokens(7)]
        assert "must return a list of 2 selections, not" in message(method.select_batch, samples, [3, 3])

    def test_outside_a_selection_a_list_is_refused_without_a_method(self):
        assert message(Selection.of, [0]).startswith("Selection.of expects a tensor")

    def test_the_host_waits_once_for_the_checks_of_a_result(self):
        for name in ("greedy", "idpruner", "vispruner", "visionzip", "holov"):
            with Operations(methods.load(name)) as seen:
                methods.load(name).select(make_tokens(40), 13)
            assert seen.total("read") == 12, "one for each tensor of the input"
            assert seen.total("copied") == 1


def test_tokens_made_by_hand_are_not_guarded():
    tokens = Tokens(torch.rand(3, 2), [(1, 1, 3)])
    assert tokens.importance is None
