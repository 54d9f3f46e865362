"""What is peculiar to Qwen3-VL under `prune`: DeepStack features, and the times of frames in its prompts."""

import re
from dataclasses import dataclass

import pytest
import torch
import transformers
from packaging.version import Version
from probes import Keys, Watch
from questions import ask, clip, picture
from reference_prune import generate, inputs_of
from tiny_models import VIDEO
from tiny_qwen3 import DEEP, LAYERS, tiny_qwen3, tiny_qwen3_processor
from uncached_reference import Cut, Prompt

import harness
from harness.core.config import ModelConfig
from harness.models import loading
from harness.models.limits import PixelLimits, limits_of
from harness.models.preprocessing import to_inputs
from methods.base import Method, Selection


@pytest.fixture(scope="module")
def processor():
    return tiny_qwen3_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3()


@pytest.mark.parametrize("method", ["divprune", *(Keys(layer=layer) for layer in range(LAYERS - 1))], ids=str)
@pytest.mark.parametrize("name", ["one image", "mixed"])
@torch.no_grad()
def test_every_feature_that_is_added_to_a_kept_row_counts(processor, model, name, method):
    """The reference of the contract adds them, too: here it is shown to notice where one is left out."""
    inputs = inputs_of(processor, [name])
    with harness.prune(model, method, tokens=4) as pruning:
        (logits,) = model(**inputs).logits
    prompt = Prompt.of(model, inputs)
    cut = Cut(getattr(method, "layer", -1), torch.tensor(pruning.records[0].kept))
    torch.testing.assert_close(logits, prompt.logits(model, cut), atol=1e-4, rtol=1e-4)
    assert len(prompt.features) == len(DEEP)
    for features in prompt.features:
        given, features[:] = features.clone(), 0
        assert (logits - prompt.logits(model, cut)).abs().max() > 1e-2
        features[:] = given


@torch.no_grad()
def test_a_video_is_one_grid_though_the_time_stands_in_front_of_its_steps(processor, model):
    with harness.prune(model, "uniform", keep=0.5) as pruning:
        generate(model, inputs_of(processor, ["mixed", "video", "one image"]))
    assert [record.grids for record in pruning.records] == [
        [(1, 3, 4), (2, 2, 3), (1, 2, 2)],
        [(3, 2, 3)],
        [(1, 4, 4)],
    ]


@torch.no_grad()
def test_a_features_row_too_few_is_caught(processor, model, monkeypatch):
    """The model itself refuses features that do not fit the mask: nothing can be left uncut in silence."""
    monkeypatch.setattr("harness.models.qwen3vl.Qwen3VL.added_arguments", lambda *args: {})
    with pytest.raises((IndexError, RuntimeError)), harness.prune(model, "uniform", keep=0.5):
        model(**inputs_of(processor, ["one image"]))


@torch.no_grad()
def test_times_of_frames_are_not_the_question(processor, model):
    """They are between the marks of the whole video, which processors leave in the prompt since 5.10."""
    watch = Watch()
    text = f"<|im_start|>user\nIn {VIDEO} when?<|im_end|>\n<|im_start|>assistant\n"
    inputs = inputs_of(processor, [(text, [], [(6, 64, 64)])])
    assert processor.decode(inputs["input_ids"][0]).count(" seconds>") == 3
    with harness.prune(model, watch, keep=0.5):
        model(**inputs)
    times = re.findall(r"(<\|vision_start\|>)?(<[\d.]+ seconds>)", processor.decode(inputs["input_ids"][0]))
    marked = Version(transformers.__version__) >= Version("5.10")  # docs/versions.md
    assert [bool(mark) for mark, _ in times] == [marked, False, False]
    question = "In  when?" if marked else f"In {''.join(time for _, time in times)} when?"
    ids = processor.tokenizer(question, return_tensors="pt")["input_ids"]
    assert torch.equal(watch.seen[0].text, model.get_input_embeddings()(ids)[0])


@dataclass(kw_only=True)
class LastStep(Method):
    """Keep the last tokens, so that every step of a video but the last loses all of its own."""

    def _select(self, tokens, k, generator):
        return Selection(torch.arange(len(tokens.features) - k, len(tokens.features)))


@torch.no_grad()
def test_the_times_of_steps_without_tokens_stay_where_they_were(processor, model):
    """A step that loses all tokens leaves "<1.2 seconds>" and the two marks around nothing: text is never cut."""
    text = f"<|im_start|>user\nIn {VIDEO} when?<|im_end|>\n<|im_start|>assistant\n"
    inputs, seen = inputs_of(processor, [(text, [], [(6, 64, 64)])]), []
    decoder = model.model.language_model
    with harness.prune(model, LastStep(), tokens=3) as pruning:
        after = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
        (logits,) = model(**inputs).logits
        after.remove()
    ids, prompt = inputs["input_ids"][0], Prompt.of(model, inputs)
    stay = ids != model.config.video_token_id
    stay[prompt.visual[-3:]] = True
    assert pruning.records[0].kept == [9, 10, 11]
    assert processor.decode(ids[stay]).count("<|vision_start|><|vision_end|>") == 2
    assert processor.decode(ids[stay]).count(" seconds>") == 3
    assert torch.equal(seen[0]["inputs_embeds"], prompt.states[:, stay])
    assert torch.equal(seen[0]["position_ids"][-3:], prompt.positions[..., stay])
    torch.testing.assert_close(logits, prompt.logits(model, Cut(-1, torch.arange(9, 12))), atol=1e-4, rtol=1e-4)


LIMITS = PixelLimits(min_pixels=4 * 1024, max_pixels=64 * 1024, max_frames=4)


class TestInputs:
    @pytest.mark.parametrize(("size", "grid"), [((64, 96), (6, 4)), ((20, 20), (4, 4)), ((2000, 1000), (10, 22))])
    def test_images_take_the_size_of_the_limits(self, processor, size, grid):
        inputs = to_inputs(processor, [ask(picture(*size))], LIMITS)
        assert tuple(inputs["image_grid_thw"][0].tolist()) == (1, *grid)

    def test_frames_have_their_times(self, processor):
        inputs = to_inputs(processor, [ask([picture(64, 96, seed) for seed in range(5)])], LIMITS)
        assert inputs["video_grid_thw"].tolist() == [[2, 6, 4]]
        text = processor.decode(inputs["input_ids"][0])
        assert "<0.2 seconds>" in text  # of frames at 0 and 0.5 seconds
        assert "<1.2 seconds>" in text

    def test_frames_at_a_rate_have_the_times_of_the_file(self, processor, tmp_path):
        clip(tmp_path / "clip.mp4", 60, 64, 64, 5)  # twelve seconds
        limits = PixelLimits(4 * 1024, 64 * 1024, max_frames=6, fps=1.0)
        text = processor.decode(to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], limits)["input_ids"][0])
        times = [float(time) for time in re.findall(r"<([\d.]+) seconds>", text)]
        frames = [round(i * 59 / 5) / 5 for i in range(6)]
        assert times == pytest.approx([(a + b) / 2 for a, b in zip(frames[::2], frames[1::2], strict=True)], abs=0.06)

    @torch.no_grad()
    def test_the_model_answers_them_pruned(self, processor, model, scorer):
        inputs = to_inputs(processor, [ask(picture(64, 96), [picture(64, 96)] * 4), ask(picture(96, 96))], LIMITS)
        with harness.prune(model, "visionselector", keep=0.5, scorer=scorer) as pruning:
            generate(model, inputs)
        assert [record.n for record in pruning.records] == [18, 9]


@torch.no_grad()
def test_a_checkpoint_loads_and_answers(processor, model, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    pixels = {"min_pixels": LIMITS.min_pixels, "max_pixels": LIMITS.max_pixels, "max_frames": LIMITS.max_frames}
    config = ModelConfig(name="tiny", pretrained=str(tmp_path), dtype="float32", device="cpu", **pixels)
    loaded = loading.load(config)
    inputs = to_inputs(loaded.processor, [ask([picture(64, 96)] * 4)], limits_of(loaded.processor, config))
    with harness.prune(loaded.model, "uniform", keep=0.5) as pruning:
        assert generate(loaded.model, inputs) != generate(model, inputs)
    assert [record.n for record in pruning.records] == [12]
