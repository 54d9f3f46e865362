"""`check_contract` says what a method breaks, with its remedy and the author's line; what is only slow is a warning."""

import warnings

import numpy as np
import pytest
import torch
from authors import keep_first, message, method_that, place

import methods
from methods.base import Method, Selection
from methods.observe import Operations
from methods.scores import top
from methods.selecting import SelectionError, at
from methods.testing import ContractAdvice, advice, check_contract


class TestContract:
    """`check_contract` on methods that break one promise each."""

    def test_scores_that_hold_nan_are_named_with_their_line(self):
        class Divides(Method):
            def _select(self, tokens, k, generator):
                scores = tokens.features.norm(dim=1) - tokens.features.norm(dim=1)
                return Selection.of(top(scores / scores, k))  # ranks 0/0

        line = message(check_contract, Divides(), error=SelectionError)
        assert line.endswith(place("# ranks 0/0"))
        assert line.startswith("divides broke its contract: it ranks scores that hold NaN")
        assert "look for 0/0" in line

    def test_nan_is_found_where_only_degenerate_inputs_make_it_and_topk_ranks_it(self):
        class Divides(Method):
            def _select(self, tokens, k, generator):
                x = tokens.features.double()
                unit = x / x.norm(dim=1, keepdim=True)
                return Selection.of(unit[:, 0].topk(k).indices)  # ranks directions of zero rows

        line = message(check_contract, Divides(), error=AssertionError)
        assert "it ranks scores that hold NaN, of zero features" in line
        assert "methods.scores.top" in line
        assert line.endswith(place("# ranks directions of zero rows"))

    def test_a_write_into_the_input(self):
        class Writes(Method):
            def _select(self, tokens, k, generator):
                tokens.features[:, 0].mul_(2)  # writes
                return Selection(torch.arange(k))

        line = message(check_contract, Writes(), error=AssertionError)
        assert "writes into its input, which others read: change a clone()" in line
        assert line.endswith(place("# writes"))

    def test_a_write_past_torch(self):
        def writes(tokens, k, generator):
            tokens.features.numpy()[:] = 0
            return Selection(torch.arange(k))

        assert "writes into its input" in message(check_contract, method_that(writes), error=AssertionError)

    @pytest.mark.parametrize("own", [None, 0])
    def test_random_numbers_of_another_source(self, own):
        class Draws(Method):
            def _select(self, tokens, k, generator):
                other = None if own is None else torch.Generator().manual_seed(own)
                return Selection.of(torch.randperm(len(tokens.features), generator=other)[:k])  # draws

        line = message(check_contract, Draws(), error=AssertionError)
        assert "draws without its generator: pass generator=generator" in line
        assert line.endswith(place("# draws"))

    def test_random_numbers_of_numpy(self):
        def draws(tokens, k, generator):
            return Selection.of(torch.from_numpy(np.random.permutation(len(tokens.features))[:k]))

        line = message(check_contract, method_that(draws), error=AssertionError)
        assert "take every random number from `generator`" in line

    def test_state_that_stays_between_calls(self):
        class Remembers(Method):
            def _select(self, tokens, k, generator):
                if not hasattr(self, "mean"):
                    self.mean = tokens.features.mean(dim=0)
                return Selection.of(top((tokens.features.float() - self.mean).norm(dim=1), k))

        line = message(check_contract, Remembers(), error=AssertionError)
        assert "an earlier selection changes a later one" in line
        assert "keep nothing between calls" in line

    def test_a_dtype_that_decides(self):
        def rounds(tokens, k, generator):
            sign = 1 if tokens.features.dtype == torch.float32 else -1
            return Selection.of(top(tokens.features.sum(1) * sign, k))

        line = message(check_contract, method_that(rounds), error=AssertionError)
        assert "other tokens than their float32 copy: begin with tokens.features.float()" in line

    def test_too_few_tokens(self):
        few = method_that(lambda tokens, k, _: keep_first(tokens, k - 1, _))
        assert "kept must be" in message(check_contract, few)

    def test_the_last_of_equals(self):
        def last(tokens, k, generator):
            n = len(tokens.features)
            return Selection(torch.arange(n - k, n))

        check_contract(method_that(last))
        line = message(check_contract, method_that(last), by_value=True, error=AssertionError)
        assert "keeps a later one first: rank with methods.scores.top" in line


class TestAdvice:
    """What only makes a method slow is a warning at the author's line, and no error."""

    @pytest.mark.parametrize(
        ("read", "says"),
        [
            (lambda scores: float(scores.abs().max()), "reads a number"),
            (lambda scores: scores.argmax().item(), "reads a number"),
            (lambda scores: range(scores.argmax()), "reads a number"),
            (lambda scores: scores[scores > 0], "at each pick (nonzero, boolean masks, unique)"),
            (lambda scores: scores.tolist(), "at each pick (tolist, numpy, cpu)"),
            (lambda scores: scores.numpy(), "at each pick (tolist, numpy, cpu)"),
            (np.asarray, "at each pick (tolist, numpy, cpu)"),
            (lambda scores: scores.cpu(), "at each pick (tolist, numpy, cpu)"),
        ],
    )
    def test_what_waits_for_the_device(self, read, says):
        class Waits(Method):
            def _select(self, tokens, k, generator):
                for _ in range(k):
                    read(tokens.features[:, 0].float())
                return Selection(torch.arange(k))

        ((what, where),) = advice(Waits())
        assert what.startswith(("waits ", "reads "))
        assert says in what
        assert where[0] == __file__

    def test_it_is_a_warning_at_the_line(self):
        class Reads(Method):
            def _select(self, tokens, k, generator):
                count = int(torch.tensor(k))  # reads
                return Selection(torch.arange(count))

        with pytest.warns(ContractAdvice, match="reads reads a number from the device") as caught:
            check_contract(Reads())
        assert at((caught[0].filename, caught[0].lineno)).endswith(place("# reads"))

    def test_one_copy_is_no_advice(self):
        assert advice(method_that(lambda tokens, k, _: tokens.features.tolist() and keep_first(tokens, k, _))) == []

    def test_a_good_method_is_left_in_peace(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_contract(methods.load("greedy"), by_value=True)


def test_operations_are_counted():
    x = torch.arange(4.0)
    with Operations(Method()) as seen:
        bool(x.sum() > 0), int(x[0]), float(x[0]), x[0].item(), range(x.long()[0])
        x[x > 1], x.nonzero(), x.unique(), x.unique(dim=0), x.masked_select(x > 1)
        x.tolist(), x.numpy(), np.asarray(x), x.cpu()
    assert [seen.total(kind) for kind in ("read", "sized", "copied", "drawn", "nan", "written")] == [5, 5, 4, 0, 0, 0]
    nan, generator = torch.tensor([0.0, torch.nan]), torch.Generator()
    with Operations(Method(), [x, nan], generator) as seen:
        nan.sort(), nan.argsort(), nan.topk(1), nan.argmax(), nan.max(dim=0), nan.kthvalue(1), x.sort()
        torch.rand(2), torch.randn(2, generator=torch.Generator().manual_seed(1)), torch.rand(2, generator=generator)
        x[1:].zero_(), torch.add(x, 1, out=x), x.clone().zero_()
    assert [seen.total(kind) for kind in ("nan", "drawn", "written")] == [6, 2, 2]
