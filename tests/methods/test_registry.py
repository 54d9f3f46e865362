"""Methods are found by name, through an entry point, or in a private file; what is wrong is said in one line."""

import subprocess
import sys
import textwrap

import pytest
import torch

import methods
from methods.base import AttentionSpec, Method, Received, Selection, Signal, Tokens
from methods.inside import InsideLLM
from methods.layer_method import LayerMethod

PRIVATE = """
    from dataclasses import dataclass
    from typing import Literal

    import torch

    from methods.base import Method, Selection, Tokens


    @dataclass(kw_only=True)
    class Tail(Method):
        \"\"\"Keep the last K tokens.\"\"\"

        skip: int = 0
        side: Literal["left", "right"] = "right"

        def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
            n = len(tokens.features) - self.skip
            return Selection(kept=torch.arange(n - k, n))


    class NotAMethod:
        pass
"""


def message(call, *args, **kwargs):
    with pytest.raises(ValueError, match=r".+") as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def private(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(PRIVATE))
    return file


def test_names_and_mistyped_names_need_no_torch():
    code = """if True:
        import sys, methods
        print(methods.names())
        try:
            methods.load("idprunner")
        except ValueError as error:
            print(error)
        sys.exit("torch" in sys.modules)
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=methods.__path__[0] + "/..")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "did you mean 'idpruner'" in ran.stdout


def test_built_in_names():
    assert {"none", "random", "uniform", "visionselector", "idpruner"} <= set(methods.names())
    for name in methods.BUILT_IN:
        assert methods.get(name).name == name
        assert isinstance(methods.load(name), Method)
        assert "Deviation:" in methods.get(name).__doc__


@pytest.mark.parametrize("typo", ["idprunner", "IDPruner", "id-pruner", "idpruner "])
def test_unknown_name_suggests_the_nearest(typo):
    said = message(methods.load, typo)
    assert "did you mean 'idpruner'?" in said
    assert "visionselector" in said  # and lists the rest


def test_unknown_name_far_from_all():
    said = message(methods.load, "zzzz")
    assert "did you mean" not in said
    assert "idpruner" in said


def test_a_published_method_that_cannot_be_written_says_why():
    assert message(methods.load, "adatp") == f"method 'adatp' is not available: {methods.UNAVAILABLE['adatp']}"
    assert not set(methods.UNAVAILABLE) & set(methods.BUILT_IN)


def test_unknown_parameter_lists_the_valid_ones():
    said = message(methods.load, "idpruner", lamda=0.5)
    assert "'lamda'" in said
    assert "did you mean 'lam'?" in said
    for parameter in ("parallel_k", "importance", "soft_topk_ratio", "epsilon"):
        assert parameter in said
    assert "has none" in message(methods.load, "greedy", lam=0.5)


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("idpruner", {"lam": 1.5}, "in [0, 1], not 1.5"),
        ("idpruner", {"lam": -0.1}, "in [0, 1]"),
        ("idpruner", {"lam": float("nan")}, "finite number"),
        ("idpruner", {"lam": 10**400}, "finite number"),
        ("idpruner", {"lam": "0.5"}, "finite number, not '0.5'"),
        ("idpruner", {"lam": True}, "finite number"),
        ("idpruner", {"parallel_k": 0}, "at least 1"),
        ("idpruner", {"parallel_k": 2.0}, "an integer"),
        ("idpruner", {"importance": "softmax"}, "one of raw, soft_topk"),
        ("idpruner", {"soft_topk_ratio": 1.0}, "in (0, 1)"),
        ("idpruner", {"epsilon": 0}, "above 0"),
        ("visionselector", {"variant": "mine"}, "one of official, paper"),
        ("uniform", {"layout": 3}, "one of grid, flat"),
        *(("cdpruner", {"theta": theta}, "in (0, 1) or null") for theta in (0, 1, 1.5, -0.5, "half", True)),
        ("dpp", {"soft_topk_ratio": 1.0}, "in (0, 1)"),
        *(("fastv", {"layer": layer}, "an integer of at least 0, or null") for layer in (-1, 1.0, "2", True)),
        ("hiprune", {"alpha": 2.0}, "in"),
        *(("hybrid", {"lam": lam}, "in [0, 1]") for lam in (-0.1, 1.1)),
        ("scope", {"alpha": -1.0}, "in"),
        ("scope", {"combined": "mean"}, "one of multi, add"),
        *(("visionzip", {"contextual": share}, "in") for share in (0.0, 1.1)),
        ("vispruner", {"ratio": 1.5}, "in"),
        *(("holov", {name: value}, "") for name, value in (("crops", -1), ("beta", -0.1), ("tau", 0))),
        *(("d2pruner", {name: value}, "") for name, value in (("pivot_ratio", 1.1), ("alpha", -0.1), ("eps", 0))),
        *(("qmmr", wrong, "") for wrong in ({"share": 1.1}, {"lam": -0.1}, {"relevance": "some"}, {"epsilon": 0.0})),
        ("id_selection", {"gamma": 0}, "above 0"),
        ("id_selection", {"layer": -1}, "at least 0"),
        ("dart", {"image_pivots": 0}, "at least 1"),
        *(("holitom", {"inner_layer": layer}, "an integer of at least 0, or null") for layer in (-1, 1.0, "2", True)),
        *(("flashvid", {"inner_keep": keep}, "above 0 and at most 1") for keep in (0.0, -0.1, 1.1)),
        ("holitom", {"beta": 1.5}, "in [0, 1]"),
        ("prunevid", {"stages": "inside"}, "one of both, input"),
        ("dart", {"text_pivots": -1}, "at least 0"),
    ],
)
def test_parameter_values_are_checked(name, params, says):
    said = message(methods.load, name, **params)
    assert said.startswith(f"{name}: {next(iter(params))} must be")
    assert says in said


def test_private_file(private):
    method = methods.load(f"{private}:Tail", side="left")
    assert method.name == "tail"
    kept = method.select(Tokens(torch.rand(5, 2), [(1, 1, 5)]), 2).kept
    assert kept.tolist() == [3, 4]
    assert "one of left, right" in message(methods.load, f"{private}:Tail", side="up")


def test_private_file_is_read_afresh(private, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # bytecode knows seconds and size, which both stay
    methods.load(f"{private}:Tail")
    private.write_text(private.read_text().replace("skip: int = 0", "skip: int = 1"))
    assert methods.load(f"{private}:Tail").skip == 1


def test_private_files_that_share_a_name_do_not_share_a_module(private, tmp_path):
    text = "from __future__ import annotations\n" + private.read_text().replace('Literal["left", "right"] =', "Side =")
    text = text.replace("import torch", "import torch\nSide = Literal['left', 'right']", 1)
    private.write_text(text)
    other = tmp_path / "other" / private.name
    other.parent.mkdir()
    other.write_text(text.replace("right", "up"))
    first, second = methods.get(f"{private}:Tail"), methods.get(f"{other}:Tail")
    assert (first().side, second().side) == ("right", "up")
    assert "one of left, right" in message(first, side="up")


def test_private_file_that_does_not_run_leaves_nothing(private):
    before = set(sys.modules)
    private.write_text("raise RuntimeError('first line\\nsecond')")
    assert "RuntimeError: first line second" in message(methods.load, f"{private}:Tail")
    assert set(sys.modules) == before


def test_a_field_that_only_a_type_checker_can_read_is_not_checked(private):
    text = private.read_text().replace(
        "skip: int = 0", 'extra: "Mapping" = None\n    ends: Sequence[int] | "X" = ()\n    skip: int = 0'
    )
    private.write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        f"if TYPE_CHECKING:\n    from collections.abc import Mapping, Sequence\n{text}"
    )
    method = methods.load(f"{private}:Tail", extra=3)
    assert method.extra == 3
    assert "an integer" in message(methods.load, f"{private}:Tail", skip=1.5)  # the others are


def test_a_field_that_the_method_sets_itself_is_not_a_parameter(private):
    derived = "skip: int = 0\n    table: int = field(init=False)"
    text = private.read_text().replace("skip: int = 0", derived)
    private.write_text(text.replace("import dataclass", "import dataclass, field"))
    assert methods.load(f"{private}:Tail").skip == 0
    assert "'table'" in message(methods.load, f"{private}:Tail", table=1)


def test_private_file_mistakes(private, tmp_path):
    assert "does not exist" in message(methods.load, str(tmp_path / "other.py") + ":Tail")
    assert "called 'Head'" in message(methods.load, f"{private}:Head")
    assert "called 'NotAMethod'" in message(methods.load, f"{private}:NotAMethod")
    assert "path/to/file.py:Class" in message(methods.load, str(private))
    private.write_text("import no_such_module_here")
    assert "no_such_module_here" in message(methods.load, f"{private}:Tail")


def install(folder, monkeypatch, entry):
    """Lay out what an installed package with one entry point looks like."""
    (folder / "their_package.py").write_text(textwrap.dedent(PRIVATE))
    info = folder / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[harness.methods]\n{entry}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "their_package", raising=False)


def test_entry_point(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "tail = their_package:Tail")
    assert methods.names()[-1] == "tail"
    assert methods.load("tail", skip=1).select(Tokens(torch.rand(5, 2), [(1, 1, 5)]), 2).kept.tolist() == [2, 3]
    assert "did you mean 'tail'?" in message(methods.load, "tial")


def test_entry_point_that_does_not_import(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "tail = no_such_module_here:Tail")
    assert "no_such_module_here" in message(methods.load, "tail")


def test_entry_point_that_cannot_be_parsed(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "tail = their_package:Tail")
    (tmp_path / "their_package.py").write_text("def broken(:\n")
    said = message(methods.load, "tail")
    assert said.startswith("method module 'their_package' cannot be imported: SyntaxError")


def test_entry_point_may_not_take_a_built_in_name(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "idpruner = their_package:Tail")
    assert "more than once" in message(methods.load, "idpruner")
    assert methods.names().count("idpruner") == 1


def test_facts_follow_from_needs():
    class Inside(Method):
        needs = frozenset({Signal.LLM})
        layer = 2

        def _select(self, tokens, k, generator):
            return Selection(kept=torch.arange(k))

    class OnAttention(Inside):
        needs = frozenset({Signal.VIT_ATTENTION})

    facts = [(m.stage, m.flash_compatible, m.servable) for m in (methods.load("idpruner"), Inside(), OnAttention())]
    assert facts == [("input", True, True), ("layer:2", True, False), ("input", True, False)]
    assert Inside().name == "inside"
    assert OnAttention().name == "onattention"


@pytest.mark.parametrize("name", methods.BUILT_IN)
def test_every_method_says_how_near_it_is_to_its_authors_code(name):
    method = methods.get(name)
    assert method.fidelity == "exact" or method.fidelity.startswith("adapted: "), method.fidelity
    assert len(method.fidelity) < 90, "one short clause"
    assert "Deviation: none" not in method.__doc__ or method.fidelity == "exact"


def test_fidelity_is_declared_by_the_class_itself(private):
    assert methods.get(f"{private}:Tail").fidelity == "undeclared"
    assert type("Mine", (methods.get("idpruner"),), {}).fidelity == "undeclared", "a subclass may select otherwise"


def test_attributes_under_their_old_names_count_for_one_release():
    with pytest.warns(FutureWarning, match=r"Old\.not_public is called unpublished_params now"):

        class Old(Method):
            not_public = frozenset({"start"})

    assert Old.unpublished_params == {"start"}
    assert InsideLLM is LayerMethod
    assert Received is AttentionSpec


def test_a_method_chooses_without_tf32_whatever_the_process_has_set():
    """lmms-eval turns it on when its LLaVA modules are imported."""
    matmul, settings = torch.backends.cuda.matmul, []

    def tf32():
        return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32

    class Watch(Method):
        def _select(self, tokens, k, generator):
            settings.append(tf32())
            return Selection.of(torch.arange(k))

    matmul.allow_tf32 = True
    try:
        Watch().select(Tokens(torch.ones(4, 2), [(1, 2, 2)]), 2)
        assert (settings, tf32(), matmul.allow_tf32) == ([False], True, True)
    finally:
        matmul.allow_tf32 = False
