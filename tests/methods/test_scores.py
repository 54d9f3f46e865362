"""Ranking: the lowest of equal indices first, never NaN; every method ranks this way."""

import ast
from pathlib import Path

import pytest
import torch

import methods
from methods.base import Method, Selection
from methods.samples import make_tokens
from methods.scores import ranked, top
from methods.selecting import SelectionError

NAN = float("nan")
SORTING = ("sort", "argsort", "topk", "kthvalue", "msort")
# The order of a permutation is its inverse, and the tokens farthest behind are a set without order.
RAW = {
    "scores.py": ["sort"],
    "random.py": ["argsort"],
    "kernels/coverage.py": ["topk"],
    "holitom.py": ["argsort"],  # these three: of whole numbers, which have no NaN
    "prunevid.py": ["argsort"],
    "kernels/static_places.py": ["argsort"],
    "vlmpruner.py": ["argsort"],  # by numpy, of cosines of finite states, which puts NaN last
}


def test_the_lowest_of_equals_goes_first():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, -torch.inf, torch.inf, 2.0])
    assert top(scores, 6).tolist() == [5, 1, 3, 2, 6, 0]
    assert top(torch.zeros(2000), 2000).tolist() == list(range(2000))
    assert top(torch.tensor([2, 5, 5]), 2).tolist() == [1, 2]
    assert top(torch.tensor([False, True, True]), 3).tolist() == [1, 2, 0]
    assert top(torch.zeros(0), 0).tolist() == []


def test_rows_are_ranked_by_themselves():
    assert ranked(torch.tensor([[1.0, 2.0], [2.0, 1.0]])).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("where", range(4))
def test_nan_is_refused_wherever_it_is(dtype, where):
    scores = torch.tensor([torch.inf, -1.0, 0.0, -torch.inf]).to(dtype)
    scores[where] = NAN
    for rank in (lambda: top(scores, 1), lambda: ranked(torch.stack([torch.zeros_like(scores), scores]))):
        with pytest.raises(SelectionError, match="scores that hold NaN"):
            rank()


@pytest.mark.parametrize("place", range(5))
def test_a_selection_is_refused_whichever_of_its_rankings_held_nan(place):
    class Ranks(Method):
        def _select(self, tokens, k, generator):
            for number in range(5):
                scores = tokens.features[:, 0].to((torch.float32, torch.float64)[number % 2])
                chosen = top(scores - scores if number != place else scores / (scores - scores) * 0, k)
            return Selection.of(chosen)

    with pytest.raises(SelectionError, match="ranks broke its contract: it ranks scores that hold NaN"):
        Ranks().select(make_tokens(9), 3)


def test_a_loop_that_ranks_for_itself_refuses_it_too(monkeypatch):
    method = methods.load("id_selection")
    monkeypatch.setattr(type(method), "_importance", lambda self, tokens: tokens.features[:, 0] * NAN)
    with pytest.raises(SelectionError, match="id_selection broke its contract: it ranks scores that hold NaN"):
        method.select(make_tokens(9), 3)


def rankings(code):
    """Return the names of sorting calls in `code`, but for x.sort().values, which puts indices in ascending order."""
    nodes = list(ast.walk(ast.parse(code)))
    ascending = [node.value for node in nodes if isinstance(node, ast.Attribute) and node.attr == "values"]
    calls = [node.func for node in nodes if isinstance(node, ast.Call) and node not in ascending]
    return sorted(func.attr for func in calls if isinstance(func, ast.Attribute) and func.attr in SORTING)


def test_methods_rank_in_no_other_way():
    assert rankings("a.topk(3).indices, torch.argsort(a), a.sort().indices") == ["argsort", "sort", "topk"]
    assert rankings("a.sort().values, sorted(a)") == []
    folder = Path(methods.__path__[0])
    files = {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in folder.rglob("*.py")}
    assert {name: raw for name, code in files.items() if (raw := rankings(code))} == RAW
