"""From a checkpoint and images to a finished run of LLaVA-1.5: what its processor and its tasks can do, and cannot."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from composed_sweeps import composed
from in_process import run
from PIL import Image
from questions import LIMITS, ask, picture
from safetensors.torch import load_file, save_file
from tiny_models import HIDDEN, tiny_llava, tiny_llava_processor, tiny_processor
from tiny_tasks import write_tiny_tasks

from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.evaluation.pruner import pruner_of
from harness.models import loading
from harness.models.bad_input import BadInput
from harness.models.limits import PixelLimits, limits_of
from harness.models.model_folder import ModelFolder
from harness.models.preprocessing import to_inputs
from harness.models.scorer import VisionSelectorScorer, save_scorer
from harness.results.result import Result

NULLS = [f"model.{key}=null" for key in ("min_pixels", "max_pixels", "max_frames")]
# Names of the released checkpoint, by those that the model has.
RELEASED = {
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
    r"^model\.vision_tower\.": "vision_tower.vision_model.",
    r"^model\.multi_modal_projector\.": "multi_modal_projector.",
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "tiny-llava"
    tiny_llava().save_pretrained(folder)
    tiny_llava_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return shutil.copytree(pristine, tmp_path / "model")


def config_of(folder: Path, **settings) -> ModelConfig:
    return ModelConfig(name="tiny", pretrained=str(folder), dtype="float32", device="cpu", **settings)


class TestInputs:
    def test_the_processor_resizes_and_pads_on_the_left(self):
        processor = tiny_llava_processor()
        batch = [ask(picture(200, 90)), ask(picture(56, 56), picture(30, 30).convert("L"), text="and a longer one?")]
        inputs = to_inputs(processor, batch, limits_of(processor, config_of("")))
        assert inputs["pixel_values"].shape == (3, 3, 56, 56)
        assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [16, 32]
        assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
        assert inputs["attention_mask"][0, 0] == 0
        plain = processor.image_processor(images=[picture(200, 90)], return_tensors="pt")
        assert torch.equal(inputs["pixel_values"][:1], plain["pixel_values"])

    def test_files_and_text_alone(self, tmp_path):
        processor = tiny_llava_processor()
        picture(60, 60).save(tmp_path / "image.png")
        from_file = [{"role": "user", "content": [{"type": "image", "url": str(tmp_path / "image.png")}]}]
        shown = [
            to_inputs(processor, [messages], None)["pixel_values"] for messages in (from_file, ask(picture(60, 60)))
        ]
        assert torch.equal(*shown)
        assert "pixel_values" not in to_inputs(processor, [ask()], None)

    def test_videos_are_refused(self):
        with pytest.raises(BadInput, match="has video, the model takes images only: try tasks=pocket_image"):
            to_inputs(tiny_llava_processor(), [ask([Image.new("RGB", (56, 56))] * 2)], None)

    def test_limits(self):
        assert limits_of(tiny_processor(), config_of("")) == PixelLimits(200704, 1605632, 32)
        given = {"min_pixels": LIMITS.min_pixels, "max_pixels": LIMITS.max_pixels, "max_frames": LIMITS.max_frames}
        assert limits_of(tiny_processor(), config_of("", **given)) == LIMITS
        with pytest.raises(ValueError, match=r"model.min_pixels=200704 must lie between 1 and model.max_pixels=784"):
            limits_of(tiny_processor(), config_of("", max_pixels=784))
        with pytest.raises(ValueError, match=r"max_frames=8: LlavaProcessor has a resolution of its own.*=null"):
            limits_of(tiny_llava_processor(), config_of("", max_frames=8))


class TestLoading:
    def test_names_of_the_released_checkpoint(self, folder):
        weights = load_file(folder / "model.safetensors")
        for pattern, released in RELEASED.items():
            weights = {re.sub(pattern, released, name): tensor for name, tensor in weights.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        loaded = loading.load(config_of(folder)).model.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tiny_llava().state_dict().items())

    def test_limits_and_a_processor_that_cannot_count_are_refused_before_the_weights(self, folder, monkeypatch):
        monkeypatch.setattr(loading.transformers.AutoModelForImageTextToText, "from_pretrained", None)
        with pytest.raises(UserError, match="resolution of its own"):
            loading.load(config_of(folder, max_pixels=200704))
        file = folder / "processor_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": None}))
        with pytest.raises(UserError, match=r"lacks patch_size: set them in its processor_config\.json"):
            loading.load(config_of(folder))


def test_a_scorer_beside_the_weights_is_found_and_must_fit(folder):
    run_of = composed(f"model.pretrained={folder}", "method=idpruner", *NULLS)
    for width in (HIDDEN, HIDDEN + 1):
        save_scorer(VisionSelectorScorer(width, 8), folder / "scorer")
        if width == HIDDEN:
            assert pruner_of(run_of, ModelFolder(folder)).scorer == folder / "scorer"
    with pytest.raises(UserError, match=f"width {HIDDEN + 1}"):
        pruner_of(run_of, ModelFolder(folder))


class TestRun:
    @pytest.fixture
    def started(self, pristine, tmp_path, monkeypatch):
        monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
        tasks = write_tiny_tasks(tmp_path / "tasks", 3)

        def start(*overrides, task="tiny_stills"):
            place = [f"model.pretrained={pristine}", f"tasks.include={tasks}", f"runs={tmp_path / 'runs'}"]
            settings = ["model.name=tiny", "model.device=cpu", "model.batch_size=2", *NULLS, f"tasks={task}"]
            return run(composed(*place, *settings, *overrides))

        return start

    def test_a_budget_in_tokens_with_compact_positions(self, started):
        folder, baseline = started("method=uniform", "tokens=5", "positions=compact")
        result, base = Result.of(folder), Result.of(baseline)
        assert folder.path.name.startswith("uniform-5tok-compact-")
        assert baseline.path.name.startswith("none-1.0-")
        assert (result.about["budget"], result.about["config"]["positions"]) == ("5tok", "compact")
        assert result.metrics["visual_tokens"] == {"tiny_stills": {"all": 16, "kept": 5, "per_layer": 5, "budget": 5}}
        assert base.about["identity"]["positions"] == "keep"
        other, same = started("method=uniform", "tokens=5")
        assert same.path == baseline.path
        assert other.path != folder.path

    def test_a_video_task_is_refused_before_anything_is_loaded(self, started, monkeypatch):
        monkeypatch.setattr(loading, "load", None)
        message = "task tiny_clips asks about video: the model takes images only: try tasks=pocket_image"
        with pytest.raises(UserError, match=message):
            started("method=uniform", "keep=0.5", task="tiny_clips")

    def test_positions_that_a_method_cannot_have_are_refused_before_anything_is_loaded(self, started, monkeypatch):
        monkeypatch.setattr(loading, "load", None)
        with pytest.raises(UserError, match="fastv cuts after a decoder layer"):
            started("method=fastv", "method.variant=paper", "keep=0.5", "positions=compact")
        with pytest.raises(UserError, match="positions must be one of keep, compact, got packed"):
            started("method=uniform", "positions=packed")


@pytest.mark.parametrize("size", [(1, 1), (10_000, 40)])
def test_a_processor_with_a_resolution_of_its_own_takes_every_shape(size):
    inputs = to_inputs(tiny_llava_processor(), [ask(picture(*size))], None)
    assert (
        inputs["pixel_values"].shape
        == to_inputs(tiny_llava_processor(), [ask(picture(60, 60))], None)["pixel_values"].shape
    )


def test_a_file_that_is_no_picture_is_bad_input(tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(range(200)))
    message = [{"role": "user", "content": [{"type": "image", "url": str(tmp_path / "a.png")}]}]
    for processor, limits in ((tiny_llava_processor(), None), (tiny_processor(), LIMITS)):
        with pytest.raises(BadInput, match="UnidentifiedImageError: cannot identify image file"):
            to_inputs(processor, [message], limits)
