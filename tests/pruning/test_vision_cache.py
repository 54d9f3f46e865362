"""Passes through the vision tower that blocks have in common: as many as there are images, and no answer changes."""

import io
from contextlib import nullcontext
from functools import partial, update_wrapper

import pytest
import torch
from probes import Watch
from reference_prune import generate, inputs_of
from tiny_families import BUILDERS
from tiny_models import HIDDEN, tiny_qwen

import harness
import methods
from harness.models import adapter_for
from harness.models.scorer import VisionSelectorScorer
from harness.pruning import vision_cache
from harness.pruning.vision_cache import SpillCache, VisionCache, arguments_digest
from methods.base import OFFICIAL, PAPER

# In front of the language model, with several things read of the tower, behind a decoder layer, merging, with a scorer
SWEEP = ("none", "random", "hiprune", "vispruner", "visionzip", "cdpruner", "fastv", "dart", "idpruner")
BATCHES = (["adjacent", "one image"], ["text between"])
PLENTY = 2**30


@pytest.fixture(scope="module", params=BUILDERS)
def family(request):
    """A model, two batches of inputs, a scorer, and what each block answers and keeps on its own."""
    build, process = BUILDERS[request.param]
    model, processor = build().float(), process()
    torch.manual_seed(0)
    scorer = VisionSelectorScorer(HIDDEN, 8, init_scale=0.3)
    batches = [inputs_of(processor, names) for names in BATCHES]
    return model, batches, scorer, [answered(model, batches, name, scorer) for name in SWEEP]


def answered(model, batches, name, scorer, shared=None, given=nullcontext):
    """Answers and records; `given` is what each batch goes through."""
    keep, answers = 1.0 if name == "none" else 0.5, []
    with torch.inference_mode(), harness.prune(model, name, keep=keep, scorer=scorer, shared=shared) as pruning:
        for batch in batches:
            with given(batch) as inputs:
                answers.append(generate(model, inputs, max_new_tokens=3))
    return answers, pruning.take()


@pytest.mark.parametrize(("memory", "pixels"), [(PLENTY, True), (0, False)], ids=["in memory", "on disk, once seen"])
def test_a_sweep_answers_and_keeps_the_same_with_one_pass_for_each_batch(family, memory, pixels):
    model, batches, scorer, expected = family
    shared = VisionCache(model, memory, [methods.load(name) for name in SWEEP])

    def once(batch):
        return shared.inputs(arguments_digest(batch["input_ids"]), lambda: batch)

    given = nullcontext if pixels else once
    assert [answered(model, batches, name, scorer, shared, given) for name in SWEEP] == expected
    assert (shared.computed, shared.reused) == (len(batches), len(batches) * (len(SWEEP) - 1))
    assert len({str(found) for found in expected}) > len(SWEEP) // 2  # else it does not matter what is handed over


def test_a_block_that_makes_its_own_inputs_may_follow_one_whose_inputs_were_kept(family):
    model, batches, scorer, expected = family
    shared = VisionCache(model, PLENTY)

    def once(batch):
        return shared.inputs(arguments_digest(batch["input_ids"]), lambda: batch)

    for given in (once, once, nullcontext):
        assert answered(model, batches, "none", scorer, shared, given) == expected[0]


@pytest.mark.parametrize("moved", [False, True], ids=["plain", "moved by accelerate"])
def test_the_tower_is_as_before(model, monkeypatch, moved):
    tower = adapter_for(model).modules()["vision"]
    if moved:
        monkeypatch.setitem(vars(tower), "forward", update_wrapper(partial(tower.forward), tower.forward))
    before = dict(vars(tower))
    with harness.prune(model, "hiprune", keep=0.5, shared=VisionCache(model, 0)):
        assert tower.forward != before.get("forward")
    assert vars(tower) == before


@pytest.fixture
def tiny(model, processor):
    """The shared passes of a model, and what runs it on the images of some samples."""
    shared = VisionCache(model, PLENTY)

    def run(*names, method="random", keep=0.5, change=0.0):
        inputs = inputs_of(processor, list(names))
        inputs["pixel_values"][0, 0] += change
        with torch.inference_mode(), harness.prune(model, method, keep=keep, shared=shared) as pruning:
            generate(model, inputs, max_new_tokens=1)
        return pruning.take()

    return shared, run


def test_what_was_not_foreseen_is_read_in_a_pass_of_its_own_and_stays(tiny):
    shared, run = tiny
    run("one image")
    assert shared.computed == 1
    for wanted in (OFFICIAL, PAPER):
        watch = Watch(wanted=wanted)
        for _ in range(2):
            run("one image", method=watch)
        first, second = watch.seen
        torch.testing.assert_close(first.vit_attention, second.vit_attention, rtol=0, atol=0)
        assert torch.equal(first.vit_keys, second.vit_keys)
        assert torch.equal(first.vit_features, second.vit_features)
    assert (shared.computed, shared.reused) == (3, 2)


@pytest.mark.parametrize("other", [{"change": 1e-3}, {"names": ("small image",)}, {"names": ("one image",) * 2}])
def test_other_pixels_and_another_batch_are_another_pass(tiny, other):
    shared, run = tiny
    run("one image")
    run(*other.get("names", ("one image",)), change=other.get("change", 0.0))
    assert (shared.computed, shared.reused) == (2, 0)


def test_nothing_that_a_block_does_to_a_pass_reaches_the_next(tiny, model, processor):
    shared, run = tiny
    expected = run("one image", method="hiprune")

    def spoil(module, args, output):
        output.pooler_output.zero_()

    hook = model.model.visual.register_forward_hook(spoil)
    run("one image", method="divprune")
    hook.remove()
    assert run("one image", method="hiprune") == expected
    assert shared.reused == 2


@pytest.fixture
def ask(tiny, model, processor):
    """What a block makes of a batch whose inputs it shares, and how often those were made."""
    shared, _ = tiny
    made: list[str] = []

    def asked(*names, method="random"):
        def make():
            made.extend(names)
            return inputs_of(processor, list(names))

        with (
            torch.inference_mode(),
            harness.prune(model, method, keep=0.5, shared=shared) as pruning,
            shared.inputs(" ".join(names), make) as inputs,
        ):
            answers = generate(model, inputs, max_new_tokens=2)
        return answers, pruning.take(), inputs["pixel_values"]

    return asked, made


@pytest.mark.parametrize("names", [("one image",), ("one image", "text between"), ("mixed",)])
def test_a_batch_that_was_shown_before_needs_no_pixels(ask, names):
    asked, made = ask
    (*first, pixels), (*second, stand_in) = asked(*names), asked(*names)
    assert first == second
    assert made == list(names)
    assert stand_in.shape == pixels.shape
    assert stand_in.isnan().all()
    assert stand_in.untyped_storage().nbytes() == stand_in.element_size()


def test_where_a_pass_is_missing_the_pixels_come_again(ask):
    asked, made = ask
    watch = Watch(wanted=OFFICIAL)
    for method in ("random", watch, watch):
        asked("one image", method=method)
    assert made == ["one image"] * 2
    assert torch.equal(watch.seen[0].vit_keys, watch.seen[1].vit_keys)


def test_a_batch_in_which_something_went_wrong_is_not_remembered(tiny):
    shared, _ = tiny
    for attempt in ("first", "second"):
        with pytest.raises(ValueError, match=attempt), shared.inputs("batch", dict):
            raise ValueError(attempt)
    with shared.inputs("batch", lambda: {"made": 1}) as inputs:
        assert inputs == {"made": 1}


def test_pixels_that_are_not_there_are_never_shown(ask, tiny, model):
    asked, _ = ask
    asked("one image")
    with (
        pytest.raises(RuntimeError, match="more often than when it was shown this batch first"),
        torch.inference_mode(),
        harness.prune(model, "random", keep=0.5, shared=tiny[0]),
        tiny[0].inputs("one image", dict) as inputs,
    ):
        _ = [generate(model, inputs, max_new_tokens=1) for _ in range(2)]


def test_passes_of_one_model_are_not_for_another(model):
    shared = VisionCache(model, 0)
    with (
        pytest.raises(ValueError, match="another model"),
        harness.prune(tiny_qwen(), "random", keep=0.5, shared=shared),
    ):
        pass


def test_a_fingerprint_is_of_all_that_a_pass_is_given():
    rows = torch.arange(6.0)
    given = [
        {"x": rows, "flag": True},
        {"x": rows, "flag": False},
        {"y": rows, "flag": True},
        {"x": rows.view(2, 3), "flag": True},
        {"x": rows.double(), "flag": True},
        {"x": [rows, rows], "flag": True},
        {"x": (rows, rows), "flag": True},
        {"x": rows.view(torch.int32), "flag": True},
        {"x": None, "flag": True},
    ]
    assert len({arguments_digest(call) for call in given}) == len(given)
    assert arguments_digest({"flag": True, "x": torch.arange(12.0)[:6]}) == arguments_digest(given[0])
    assert arguments_digest(rows.bfloat16()) == arguments_digest(rows.bfloat16())
    with pytest.raises(TypeError, match="Generator"):
        arguments_digest({"x": torch.Generator()})


def test_a_shelf_gives_back_what_was_put_there_last():
    full = SpillCache(memory=10)
    for key, data in (("a", b"1234"), ("b", b"123456"), ("c", b"spilled"), ("d", b""), ("c", b"later"), ("a", b"12")):
        full.put(key, data)
    assert [full.get(key) for key in "abcde"] == [b"12", b"123456", b"later", b"", None]
    full.put("e", b"12")  # what the shorter a left free
    assert full.get("e") == b"12"
    assert full._file.seek(0, io.SEEK_END) == len(b"spilled" + b"later")


def test_a_full_disk_takes_nothing_more(monkeypatch, caplog):
    monkeypatch.setattr(vision_cache, "RESERVE", 2**62)
    full = SpillCache(memory=4)
    full.put("a", b"1234")
    full.put("b", b"1234")
    assert (full.get("a"), full.get("b")) == (b"1234", None)
    assert "nearly full" in caplog.text


def test_the_file_of_a_shelf_has_no_name(monkeypatch, tmp_path):
    monkeypatch.setattr(vision_cache.tempfile, "tempdir", str(tmp_path))
    spilling = SpillCache(memory=0)
    spilling.put("a", b"1234")
    assert spilling.get("a") == b"1234"
    assert not list(tmp_path.iterdir())
