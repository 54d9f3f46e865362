"""What is peculiar to LLaVA-OneVision under `prune`: resized mosaics, several images, pooled videos, prompts."""

import copy
import re
from functools import partial

import pytest
import torch
from PIL import Image
from probes import Keys, Watch
from questions import ask, picture
from reference_prune import generate, inputs_of
from safetensors.torch import load_file, save_file
from tiny_llava_onevision import PIXELS, RULE, SIDE, tiny_llava_onevision, tiny_llava_onevision_processor
from tiny_models import tiny_tokenizer
from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
from uncached_reference import Cut, Prompt

import harness
import methods
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.models import adapter_for, loading, vision_tower
from harness.models.bad_input import BadInput
from harness.models.limits import FrameLimit, limits_of
from harness.models.llava_onevision import LlavaOnevision
from harness.models.mosaic import PooledVideo
from harness.models.preprocessing import to_inputs
from methods.base import Method, Selection, Signal

PATCHES = 729  # of a crop in the released models
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_onevision_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_llava_onevision()


@pytest.fixture(scope="module")
def released_processor():
    """The processor with the geometry of the released models."""
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(),
        tiny_tokenizer(),
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=PATCHES,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        video_token=VIDEO,
    )


@pytest.fixture(scope="module")
def released():
    """A tiny model with the geometry of the released ones."""
    return tiny_llava_onevision(layers=2, depth=2, released=True)


def noise(height, width):
    return Image.effect_noise((width, height), 90).convert("RGB")


class Highest(Method):
    """Keep the tokens that receive most attention in the tower."""

    needs = frozenset({Signal.VIT_ATTENTION})

    def _select(self, tokens, k, generator):
        return Selection.of(tokens.vit_attention["last"].argsort(descending=True, stable=True)[:k])


class TestGeometry:
    @pytest.mark.parametrize(
        ("image", "crops", "rows", "newlines"),
        [
            ((384, 384), 2, 1485, 27),
            ((500, 700), 5, 2819, 38),
            ((640, 480), 5, 2943, 54),
            ((1536, 1536), 17, 7371, 81),
            ((2304, 2000), 37, 7341, 87),
        ],
    )
    def test_one_image(self, released, released_processor, image, crops, rows, newlines):
        inputs = released_processor(text=[IMAGE], images=[[noise(*image)]], return_tensors="pt")
        assert inputs["pixel_values"].shape[1] == crops
        assert inputs["input_ids"].shape[1] == rows
        (packing,) = adapter_for(released)._packings("image", inputs.get)
        assert (packing.crops, packing.placeholders.rows) == (crops, rows)
        assert int((~packing.placeholders.patches).sum()) == newlines
        assert sum(h * w for _, h, w in packing.grids) == rows - newlines

    def test_sizes_at_which_rounding_decides(self, released):
        adapter, model = adapter_for(released), released.model
        for image in [(height, width) for height in range(31, 2400, 397) for width in range(29, 2500, 419)]:
            packing = adapter.packing(released.config, *image)
            features = torch.arange(packing.crops * PATCHES).float().view(packing.crops, PATCHES, 1)
            newline = torch.full((1,), -1.0)
            (expected,), _ = model.pack_image_features([features], torch.tensor([image]), image_newline=newline)
            patches = packing.placeholders.patches
            assert torch.equal(expected[:, 0] < 0, ~patches), image
            torch.testing.assert_close(expected[patches], packing.carry(features.flatten(0, 1)))

    @torch.no_grad()
    def test_two_images_of_a_prompt_are_730_rows_each(self, released, released_processor):
        images = [[noise(500, 700), noise(640, 480)]]
        inputs = released_processor(text=[f"{IMAGE} or {IMAGE}?"], images=images, return_tensors="pt")
        assert int((inputs["input_ids"] == released.config.image_token_id).sum()) == 2 * 730
        prompt = Prompt.of(released, inputs)
        assert prompt.newlines.tolist() == [729, 729 + 4 + 730]
        with harness.prune(released, "uniform", tokens=100) as pruning:
            (logits,) = released(**inputs).logits
        (record,) = pruning.records
        assert (record.grids, record.n, record.newlines) == ([(1, 27, 27)] * 2, 2 * 729, (2, 0))
        expected = prompt.logits(released, Cut(-1, torch.tensor(record.kept)))
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("newlines", ["drop", "keep", "follow"])
    @pytest.mark.parametrize("method", ["uniform", Keys(layer=0)], ids=str)
    @torch.no_grad()
    def test_a_video_of_5_frames_is_981_rows_of_which_the_last_stays(
        self, released, released_processor, method, newlines
    ):
        frames = torch.randint(0, 256, (5, 3, 90, 120), dtype=torch.uint8)
        inputs = released_processor(text=[f"see {VIDEO}when?"], videos=[frames], return_tensors="pt")
        (rows,) = (inputs["input_ids"][0] == released.config.video_token_id).nonzero().T
        assert len(rows) == 981
        prompt = Prompt.of(released, inputs)
        assert torch.equal(prompt.states[0, rows[-1]], released.model.image_newline)
        assert torch.equal(prompt.visual, rows[:-1])  # the reference takes the last row for text, which stays
        with harness.prune(released, method, tokens=98, newlines=newlines) as pruning:
            (logits,) = released(**inputs).logits
        (record,) = pruning.records
        assert (record.grids, record.n, record.k, record.newlines) == ([(5, 14, 14)], 980, 98, (0, 0))
        assert len(logits) == inputs["input_ids"].shape[1] - 980 + 98
        cut = Cut(getattr(method, "layer", -1), torch.tensor(record.kept))
        torch.testing.assert_close(logits, prompt.logits(released, cut), atol=1e-3, rtol=1e-3)


class TestSignals:
    """What the tower has of patches takes the way that the model's own packing takes with their features."""

    @pytest.mark.parametrize("how", ["forward", "generate"])
    @torch.no_grad()
    def test_images_and_videos(self, processor, how):
        model, watch = tiny_llava_onevision(attn="eager"), Watch()
        samples = ["mixed", "one image", ("wide <|image_pad|>?", [(40, 300)], []), "adjacent"]
        inputs = inputs_of(processor, samples)
        with harness.prune(model, watch, keep=0.5):
            if how == "generate":
                generate(model, inputs)
            else:
                model(**inputs)
        maps = partial(self.received, model)
        crops = [1, 1, 5, 3, 1, 1, 1]
        pixels = torch.cat([image[:n] for image, n in zip(inputs["pixel_values"], crops, strict=True)])
        newline = torch.tensor([torch.nan])
        packed, _ = model.model.pack_image_features(
            list(maps(pixels).unsqueeze(-1).split(crops)), inputs["image_sizes"], newline, RULE
        )
        images = [rows[~rows.isnan()] for rows in packed]
        assert [len(rows) for rows in images] == [25, 25, 25 + 42, 25 + 10, 25, 25, 25]
        frames = maps(inputs["pixel_values_videos"].flatten(0, 1)).unsqueeze(-1)
        video = model.model.apply_pooling(frames).flatten()
        expected = [torch.cat([images[0], video, images[1]]), images[2], images[3], torch.cat(images[4:])]
        for tokens, scores in zip(watch.seen, expected, strict=True):
            torch.testing.assert_close(tokens.vit_attention["last"], scores, atol=1e-6, rtol=1e-4)
            assert tokens.vit_keys.shape == (len(scores), 16)
            assert tokens.vit_features.shape == (len(scores), 32)
            assert not tokens.has_cls

    def received(self, model, pixels):
        """The attention [crops, patches] that patches receive in the last layer: mean over heads, sum over queries."""
        return model.model.vision_tower(pixels, output_attentions=True).attentions[-1].mean(1).sum(1)

    @pytest.mark.parametrize(
        ("crop", "patch", "rows"),
        [
            (0, 100, [100]),
            (1, 8 * 27, [PATCHES]),  # the first line that is no padding
            (3, 100, [PATCHES + (27 + 3 - 8) * 54 + 19]),
            (4, 18 * 27 + 26, [PATCHES + 38 * 54 - 1]),
        ],
    )
    def test_the_score_of_a_patch_reaches_its_row(self, released, released_processor, monkeypatch, crop, patch, rows):
        inputs = released_processor(text=[IMAGE], images=[[noise(500, 700)]], return_tensors="pt")
        assert self.kept(released, inputs, monkeypatch, crop, patch, len(rows)) == rows

    def test_the_score_of_a_patch_reaches_the_rows_into_which_it_is_resized(
        self, released, released_processor, monkeypatch
    ):
        """Of 108 lines become 81: line 28 is the mean of lines 37 and 38, column 1 that of columns 1 and 2."""
        inputs = released_processor(text=[IMAGE], images=[[noise(1536, 1536)]], return_tensors="pt")
        crop, patch = 1 + 4, (37 - 27) * 27 + 1  # of 4 x 4 tiles the first of the second row
        assert self.kept(released, inputs, monkeypatch, crop, patch, 1) == [PATCHES + 28 * 81 + 1]

    @torch.no_grad()
    def kept(self, model, inputs, monkeypatch, crop, patch, count):
        crops = iter(range(100))

        def scores(q, *_):
            values = torch.zeros(PATCHES)
            values[patch] += next(crops) == crop
            return values

        monkeypatch.setattr(vision_tower, "attention_received", scores)
        with harness.prune(model, Highest(), tokens=count) as pruning:
            model(**inputs)
        return pruning.records[0].kept


def test_frames_of_a_video_are_its_crops():
    video = PooledVideo(SIDE, 2)
    assert video.placeholders.grids == [(2, 3, 3)]
    assert video.placeholders.crops.tolist() == [0] * 9 + [1] * 9
    assert video.placeholders.patches.tolist() == [True] * 18 + [False]


class TestQuestion:
    """In prompts of the released tokenizer and template: "<|im_start|>user <image>\nWhat...<|im_end|>"."""

    START, END, PAD, LINE, SPACE, USER = 151644, 151645, 151643, 198, 220, 872
    IMAGE, VIDEO = 151646, 151647
    WORDS = (3838, 374, 432, 30)

    @pytest.mark.parametrize("shown", [[IMAGE] * 3, [IMAGE] * 2 + [VIDEO] * 5])
    @pytest.mark.parametrize("words", [WORDS, (3838, LINE, 432, SPACE, 30)])
    def test_the_words_alone(self, model, shown, words):
        model = copy.copy(model)
        model.config = copy.deepcopy(model.config)
        model.generation_config = copy.deepcopy(model.generation_config)
        model.config.image_token_index, model.config.video_token_index = self.IMAGE, self.VIDEO
        for config in (model.config.text_config, model.generation_config):
            config.bos_token_id, config.eos_token_id, config.pad_token_id = self.PAD, self.END, self.PAD
        turn = [self.START, self.USER, self.SPACE, *shown, self.LINE, *words, self.END]
        ids = torch.tensor([self.PAD, self.PAD, *turn, self.START, 77091, self.LINE])
        kinds = (ids == self.IMAGE).int() + 2 * (ids == self.VIDEO).int()
        rows = adapter_for(model).question(ids, kinds)
        assert ids[rows].tolist() == list(words)


class TestInputs:
    def test_images_of_a_prompt_belong_together(self, processor):
        two, one = ask(picture(100, 120), picture(140, 140)), ask(picture(100, 120))
        inputs = to_inputs(processor, [two, one], FrameLimit())
        assert inputs["batch_num_images"].tolist() == [2, 1]
        tokens = (inputs["input_ids"] == processor.image_token_id).sum(1).tolist()
        assert tokens[0] == 2 * (SIDE**2 + 1) < tokens[1]

    def test_frames_of_a_video(self, processor):
        frames = [picture(90, 60, seed) for seed in range(9)] + [picture(60, 60)]  # of the size of the first
        inputs = to_inputs(processor, [ask(frames)], FrameLimit(max_frames=4))
        assert inputs["pixel_values_videos"].shape == (1, 4, 3, PIXELS, PIXELS)
        assert int((inputs["input_ids"] == processor.video_token_id).sum()) == 4 * 9 + 1

    def test_videos_of_other_lengths_do_not_share_a_batch(self, processor):
        videos = [ask([picture(90, 60)] * count) for count in (3, 2)]
        with pytest.raises(UserError, match=r"videos of a batch have 2 and 3 frames.*model.batch_size=1"):
            to_inputs(processor, videos, FrameLimit())

    def test_what_the_processor_does_not_take(self, processor):
        config = {"name": "tiny", "pretrained": "tiny", "min_pixels": None, "max_pixels": None}
        assert limits_of(processor, ModelConfig(**config, max_frames=8)) == FrameLimit(8)
        with pytest.raises(
            ValueError, match=r"model.max_pixels=999: .* resolution of its own, pass model.max_pixels=null"
        ):
            limits_of(processor, ModelConfig(**{**config, "max_pixels": 999}, max_frames=8))

    def test_a_ribbon_that_would_be_padded_to_a_huge_square(self, processor):
        ribbon = Image.new("RGB", (20_000, 2))
        with pytest.raises(BadInput, match="20000 x 2 pixels"):
            to_inputs(processor, [ask(ribbon, picture(60, 60))], FrameLimit())
        inputs = to_inputs(processor, [ask(ribbon)], FrameLimit())
        assert int((inputs["input_ids"] == processor.image_token_id).sum()) == SIDE**2 + SIDE + 1


class TestRefusals:
    def test_another_rule_for_large_mosaics(self, model):
        config = copy.deepcopy(model.config)
        config.vision_aspect_ratio = "anyres"
        with pytest.raises(ValueError, match="vision_aspect_ratio=anyres: supported is anyres_max_N"):
            LlavaOnevision.check(methods.load("uniform"), config)

    def test_features_without_their_first_patch(self, model):
        config = copy.deepcopy(model.config)
        config.vision_feature_select_strategy = "default"
        with pytest.raises(ValueError, match="drops the first patch"):
            LlavaOnevision.check(methods.load("uniform"), config)

    @torch.no_grad()
    def test_arguments_that_change_the_rows(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        with pytest.raises(ValueError, match="anyres_max_4"), harness.prune(model, "uniform", keep=0.5):
            model(**inputs, vision_aspect_ratio="anyres_max_4")
        inputs["batch_num_images"] = torch.tensor([2])
        with (
            pytest.raises(ValueError, match=r"counts 2 images, there are 1"),
            harness.prune(model, "uniform", keep=0.5),
        ):
            model(**inputs)


@torch.no_grad()
def test_a_checkpoint_loads_and_answers(processor, model, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    config = ModelConfig(name="tiny", pretrained=str(tmp_path), dtype="float32", device="cpu", max_frames=4)
    loaded = loading.load(config)
    limits = limits_of(loaded.processor, config)
    conversations = [ask(picture(140, 120)), ask(picture(60, 60), [picture(90, 60)] * 6)]
    inputs = to_inputs(loaded.processor, conversations, limits)
    with harness.prune(loaded.model, "scope", keep=0.25) as pruning:
        assert generate(loaded.model, inputs) != generate(model, inputs)
    assert [record.grids for record in pruning.records] == [[(1, 5, 5), (1, 6, 7)], [(1, 5, 5), (1, 5, 5), (4, 3, 3)]]


# Names of today, with which versions of transformers save with or without "model." -> names of the released tensors
RELEASED = {
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
    r"^(model\.)?vision_tower\.(vision_model\.)?": "vision_tower.vision_model.",
    r"^model\.(multi_modal_projector\.|image_newline)": r"\1",
}


def test_names_of_the_released_checkpoint(processor, model, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for pattern, name in RELEASED.items():
        weights = {re.sub(pattern, name, key): tensor for key, tensor in weights.items()}
    assert {"image_newline", "vision_tower.vision_model.embeddings.patch_embedding.weight"} <= set(weights)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = loading.load(ModelConfig("tiny", str(tmp_path), dtype="float32", device="cpu")).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
