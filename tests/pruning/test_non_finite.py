"""Logits that are not finite stop a block and a run, pruned or not, in a prefill or a step, greedy or not."""

from contextlib import contextmanager

import pytest
import torch
from composed_sweeps import composed
from reference_prune import generate, inputs_of
from safetensors.torch import load_file, save_file
from tiny_families import BUILDERS, tiny
from tiny_models import tiny_folder
from tiny_tasks import write_tiny_tasks

import harness
from harness.core.errors import UserError
from harness.evaluation import lmms_model, runner
from harness.evaluation.run_context import RunContext
from harness.models.calls import NonFiniteError, returned_logits
from harness.pruning.steps import DeferredErrors

WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.0},
    "beams": {"num_beams": 3},
}
PLACES = {"a prefill": 1, "a decoding step": 3}


@contextmanager
def broken(model, at, value=float("nan")):
    """Spoil one of the logits from pass number `at` on."""
    passes = []

    def spoil(module, args, output):
        passes.append(1)
        if len(passes) >= at:
            output[-1, -1, 7] = value

    handle = model.lm_head.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(params=BUILDERS)
def model(request):
    return tiny(request.param, torch.float32)[0]


@pytest.fixture
def inputs(model):
    return inputs_of(BUILDERS[model.config.model_type][1](), ["one image", "small image"])


def defer(monkeypatch):
    """Treat the CPU as a GPU, on which errors wait."""

    def add(self, wrong, error):
        earlier, _ = self._open.get(str(error), (wrong, error))
        self._open[str(error)] = wrong | earlier, error

    monkeypatch.setattr(DeferredErrors, "add", add)


def answer(model, inputs, keep, way):
    with torch.no_grad(), harness.prune(model, "random", keep=keep) as pruning:
        generate(model, inputs, max_new_tokens=5, min_new_tokens=5, **WAYS[way])
        pruning.take()


@pytest.mark.parametrize("keep", [0.5, 1.0])
@pytest.mark.parametrize(("way", "deferred"), [*((way, False) for way in WAYS), ("greedy", True), ("beams", True)])
@pytest.mark.parametrize("place", PLACES)
def test_a_block_with_logits_that_are_not_finite_is_an_error(model, inputs, place, way, keep, deferred, monkeypatch):
    if deferred:
        defer(monkeypatch)
    said = rf"the logits of {type(model).__name__} are not finite in {place} \(float32\); the weights are damaged or"
    for value in (float("nan"), float("-inf")):
        with broken(model, PLACES[place], value), pytest.raises(NonFiniteError, match=said):
            answer(model, inputs, keep, way)


@torch.no_grad()
def test_padding_may_have_any_logits_and_so_may_a_model_outside_a_block(model, inputs):
    def spoil(module, args, output):
        output[:, 0] = torch.nan

    handle = model.lm_head.register_forward_hook(spoil)
    try:
        with harness.prune(model, "uniform", keep=0.5):
            model(**inputs)
    finally:
        handle.remove()
    with broken(model, 1):
        model(**inputs)


def test_logits_are_found_in_every_form_of_output():
    logits, other = torch.rand(1, 2, 3), torch.rand(())
    assert returned_logits((other, logits)) is logits
    assert returned_logits({"loss": other, "logits": logits}) is logits
    assert returned_logits({"loss": other}) is returned_logits((other,)) is returned_logits(None) is None


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """Return the overrides of a run with a model that has NaN among its weights."""
    root = tmp_path_factory.mktemp("poisoned")
    folder, tasks = tiny_folder(root), write_tiny_tasks(root / "tasks", 4)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][7, 3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    place = [f"model.pretrained={folder}", f"tasks.include={tasks}", "tasks=tiny_stills"]
    return [*place, "model.name=tiny", "model.device=cpu", "method=random", "keep=0.5"]


@pytest.mark.parametrize("verify", ["true", "false"])
@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("deferred", [False, True])
def test_a_run_stops_and_names_the_question(poisoned, way, baseline, verify, deferred, tmp_path, monkeypatch):
    if deferred:
        defer(monkeypatch)
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
    generation = lmms_model.generation_arguments
    monkeypatch.setattr(lmms_model, "generation_arguments", lambda *args: generation(*args) | WAYS[way])
    context = RunContext()
    config = composed(*poisoned, f"runs={tmp_path / 'runs'}", f"verify={verify}", "model.batch_size=2")
    with pytest.raises(UserError) as raised:
        runner.run(context.plan(config), context, baseline)
    said = (
        "task tiny_stills, question 0 or one of the 1 after it: the logits of Qwen2_5_VLForConditionalGeneration are "
    )
    assert str(raised.value).startswith(f"{said}not finite in a prefill (float32); the weights are damaged")
    assert not list((tmp_path / "runs").rglob("DONE"))
