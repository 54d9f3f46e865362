"""The life of a prune block: new, open, closed; whatever is done to the model meanwhile, it is as before afterwards."""

import copy
import gc
import pickle
import threading
from contextlib import ExitStack
from io import BytesIO

import pytest
import torch
from fake_devices import pretended_devices
from reference_prune import generate, hooks, inputs_of
from tiny_families import BUILDERS, tiny
from tiny_models import tiny_qwen

import harness
from harness.models import adapter_for
from harness.pruning.one_thread import OneThread
from harness.pruning.vision_cache import VisionCache

NO_WITH = r"called without `with`.*: write `with harness.prune\(\.\.\.\) as pruning:`"


@pytest.fixture
def model():
    """A model of this test's own, so that no hook reaches another test."""
    return tiny_qwen()


@pytest.fixture(scope="module")
def inputs(processor):
    return inputs_of(processor, ["one image"])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def block(model, **changes):
    return harness.prune(model, **{"method": "uniform", "keep": 0.3, **changes})


def rows(model, inputs):
    """Return how many rows the language model's output has."""
    return model(**inputs).logits.shape[1]


FULL, CUT = 33, 19  # rows of the prompt, unpruned and pruned


class TestStates:
    def test_a_block_is_entered_once(self, model, inputs):
        one = block(model)
        with one as pruning:
            with pytest.raises(RuntimeError, match="open already: enter it once"):
                one.__enter__()
            assert rows(model, inputs) == CUT
        with pytest.raises(RuntimeError, match=r"over: call harness\.prune"), one:
            pass
        assert rows(model, inputs) == FULL
        assert [record.k for record in pruning.take()] == [6]  # the handle outlives the block

    @pytest.mark.parametrize("other", [lambda model: model, lambda model: Shared(model)])
    def test_a_model_is_in_one_block_at_a_time(self, model, inputs, other):
        with block(model):
            with pytest.raises(RuntimeError, match="already being pruned: leave the outer block"), block(other(model)):
                pass
            assert rows(model, inputs) == CUT
        assert rows(model, inputs) == FULL

    def test_one_block_after_the_other(self, model, inputs):
        before = hooks(model)
        for keep, expected in [(0.3, CUT), (1.0, FULL), (0.5, 23)]:
            with block(model, keep=keep):
                assert rows(model, inputs) == expected
            assert hooks(model) == before

    def test_blocks_made_at_once_and_entered_in_turn(self, model, inputs):
        for one in [block(model), block(model)]:
            with one:
                assert rows(model, inputs) == CUT
        assert rows(model, inputs) == FULL

    def test_leaving_without_having_entered(self, model):
        with pytest.raises(RuntimeError, match="not open: write"):
            block(model).__exit__(None, None, None)

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_an_exception_within(self, model, inputs, error):
        before = hooks(model)
        with pytest.raises(error), block(model):
            interrupt(lambda: generate(model, inputs), error)
        assert hooks(model) == before
        assert rows(model, inputs) == FULL
        with block(model):
            assert rows(model, inputs) == CUT

    @pytest.mark.parametrize(("broken", "method"), [(0, {}), (1, {"method": "fastv", "layer": 0})])
    def test_a_block_that_cannot_open_leaves_the_model_free(self, model, inputs, monkeypatch, broken, method):
        before = hooks(model)
        monkeypatch.setattr(model.model.language_model.layers[broken], "forward", lambda *args: None)
        with pytest.raises(RuntimeError, match="cannot be hooked"), block(model, **method):
            pass
        monkeypatch.undo()
        assert hooks(model) == before
        with block(model, **method):
            assert rows(model, inputs) == CUT

    def test_a_generator_holds_its_block_open_until_it_is_closed(self, model, inputs):
        def answers():
            with block(model):
                while True:
                    yield rows(model, inputs)

        running = answers()
        assert [next(running), next(running), rows(model, inputs)] == [CUT, CUT, CUT]
        with pytest.raises(RuntimeError, match="generator that is not exhausted"), block(model):
            pass
        running.close()
        assert rows(model, inputs) == FULL


def interrupt(first, error):
    first()
    raise error


class Shared(torch.nn.Module):
    """Another model object around the same parts."""

    def __init__(self, model):
        super().__init__()
        self.config, self.model = model.config, model.model


class TestWithoutWith:
    """`harness.prune(model, ...)` alone prunes nothing: the next pass says so."""

    @pytest.mark.parametrize("passes", [generate, rows, lambda model, inputs: model.model(**inputs)])
    @pytest.mark.parametrize("holds", [True, False])
    def test_the_next_pass_is_refused_once(self, model, inputs, passes, holds):
        before, held = hooks(model), [block(model)][: int(holds)]
        gc.collect()
        with pytest.raises(RuntimeError, match=NO_WITH) as error:
            passes(model, inputs)
        assert "\n" not in str(error.value)
        assert hooks(model) == before
        assert rows(model, inputs) == FULL
        for one in held:
            with one:
                assert rows(model, inputs) == CUT

    def test_not_while_another_block_prunes(self, model, inputs):
        waiting = block(model)
        with block(model):
            assert rows(model, inputs) == CUT
        with pytest.raises(RuntimeError, match=NO_WITH):
            rows(model, inputs)
        with waiting:
            assert rows(model, inputs) == CUT

    def test_by_hand(self, model, inputs):
        with ExitStack() as stack:
            pruning = stack.enter_context(block(model))
            assert rows(model, inputs) == CUT
        assert len(pruning.records) == 1

    @pytest.mark.parametrize("name", ["records", "take", "seed", "anything"])
    def test_the_block_is_not_the_handle(self, model, name):
        with pytest.raises(AttributeError, match=f"no '{name}', its handle may: write"):
            getattr(block(model), name)


class TestCopies:
    """A copy would have the hooks for ever."""

    @pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps, lambda model: torch.save(model, BytesIO())])
    @pytest.mark.parametrize("method", ["uniform", "fastv", "hiprune"])
    @pytest.mark.parametrize("family", BUILDERS)
    def test_no_copy_is_made_within(self, family, method, how):
        model, _ = tiny(family)
        adapter = adapter_for(model)
        with block(model, method=method):
            for module in adapter.modules().values():
                with pytest.raises(RuntimeError, match=r"copied, pickled or saved whole .*: leave .* state_dict\(\)"):
                    how(module)

    def test_nor_with_shared_vision_passes(self, model):
        shared = VisionCache(model, 0)
        with block(model, shared=shared), pytest.raises(RuntimeError, match="cannot be copied"):
            copy.deepcopy(model.model.visual)

    def test_a_copy_from_outside_is_another_model(self, model, inputs):
        with block(model):
            rows(model, inputs)
        other = copy.deepcopy(model)
        with block(model):
            assert [rows(model, inputs), rows(other, inputs)] == [CUT, FULL]
            with block(other):
                assert rows(other, inputs) == CUT

    def test_what_within_is_saved_as_weights(self, model, inputs, tmp_path):
        names = set(model.state_dict())
        with block(model):
            assert set(model.state_dict()) == names
            model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)

    @pytest.mark.parametrize("copied", [copy.copy, lambda model: model._replicate_for_data_parallel()])
    @pytest.mark.filterwarnings("error")
    def test_a_shallow_copy_does_not_run_within(self, model, inputs, copied):
        with (
            block(model),
            pytest.raises(RuntimeError, match=r"a copy of .* ran within a prune block, as under DataPar"),
        ):
            copied(model)(**inputs)


class TestMeanwhile:
    def test_another_device(self, model, inputs):
        with pretended_devices(), block(model, method="hiprune") as pruning:
            here = generate(model, inputs)
            model.to("cpu:1")
            assert generate(model, {name: value.to("cpu:1") for name, value in inputs.items()}) == here
            assert pruning.records[0] == pruning.records[1]

    def test_another_dtype(self, model, inputs):
        with block(model, method="hiprune") as pruning:
            assert rows(model, inputs) == CUT
            model.to(torch.float64)
            assert generate(model, inputs)
            assert rows(model, inputs) == CUT
            assert len({tuple(record.kept) for record in pruning.records}) == 1
        assert rows(model, inputs) == FULL

    def test_training_and_evaluation(self, model, inputs):
        with block(model):
            assert rows(model.train(), inputs) == CUT
            assert rows(model.eval(), inputs) == CUT
        assert rows(model, inputs) == FULL


class TestThreads:
    def test_another_thread_may_run_the_model(self, model, inputs):
        expected, answers = [], []
        with block(model):
            expected = generate(model, inputs)
            thread = threading.Thread(target=lambda: answers.append(generate(model, inputs)))
            thread.start()
            thread.join()
        assert answers == [expected]

    @pytest.mark.parametrize("where", ["", "model.visual", "model.language_model"])
    def test_two_at_once_are_refused_and_the_first_is_right(self, model, inputs, where):
        """The second pass begins while the first is in the middle of a module."""
        errors = []

        def second():
            with pytest.raises(RuntimeError, match="two threads ran the model at once") as error:
                model(**inputs)
            errors.append(str(error.value))

        def interrupt(module, args):
            handle.remove()
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

        with block(model, method="hiprune") as pruning:
            expected = model(**inputs).logits
            handle = model.get_submodule(where).register_forward_pre_hook(interrupt)
            assert torch.equal(model(**inputs).logits, expected)
            assert len(pruning.records) == 2
        assert len(errors) == 1
        assert "\n" not in errors[0]

    def test_a_pass_ends_where_it_began(self):
        outer, inner, one = torch.nn.Module(), torch.nn.Module(), OneThread()
        one.enter(outer)
        one.enter(inner)
        one.leave(inner)
        assert one.admitted
        one.leave(outer)
        assert not one.admitted
