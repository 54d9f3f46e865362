"""LLaVA-OneVision-1.5: generation, placeholders that do not fit, and the processor."""

import json

import pytest
import torch
from attention_kernels import KERNELS, with_kernel
from reference_prune import inputs_of
from tiny_llavaov15 import (
    answers,
    llavaov15_processor,
    released_folder,
    save_older_files,
    tiny_llavaov15,
)
from tiny_models import IMAGE, VIDEO
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLProcessor,
)

from harness.models.llavaov15 import MODEL_TYPE, register


@pytest.fixture(scope="module")
def processor():
    return llavaov15_processor()


class TestGeneration:
    NAMES = ("one image", "video", "text between", "mixed")

    @pytest.mark.parametrize("attn", KERNELS)
    @torch.no_grad()
    def test_left_padded_batch_equals_single(self, processor, attn):
        model = with_kernel(tiny_llavaov15(), attn)
        together = inputs_of(processor, self.NAMES)
        assert not bool(together["attention_mask"].all())
        logits, batch = model(**together).logits, answers(model, together)
        for row, name in enumerate(self.NAMES):
            single = inputs_of(processor, [name])
            alone = model(**single).logits[0]
            torch.testing.assert_close(logits[row, -len(alone) :], alone, atol=1e-4, rtol=1e-4)
            assert [batch[row]] == answers(model, single)

    @torch.no_grad()
    def test_with_and_without_cache(self, llavaov15, processor):
        inputs = inputs_of(processor, self.NAMES)
        expected = answers(llavaov15, inputs)
        for other in ({"use_cache": False}, {"cache_implementation": "static"}):
            assert answers(llavaov15, inputs, **other) == expected

    @torch.no_grad()
    def test_decoding_by_hand(self, llavaov15, processor):
        """Positions come from the mask, which holds the cached tokens too."""
        inputs = inputs_of(processor, self.NAMES)
        full = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.full((4, 2), 65)], 1)}
        full["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(4, 2, dtype=torch.long)], 1)
        cache = llavaov15(**inputs, use_cache=True).past_key_values
        mask = full["attention_mask"]
        step = llavaov15(input_ids=full["input_ids"][:, -2:], attention_mask=mask, past_key_values=cache).logits
        torch.testing.assert_close(step, llavaov15(**full).logits[:, -2:], atol=1e-4, rtol=1e-4)
        assert torch.equal(llavaov15(**full, logits_to_keep=1).logits, llavaov15(**full).logits[:, -1:])

    @torch.no_grad()
    def test_beams_and_several_answers(self, llavaov15, processor):
        inputs = inputs_of(processor, ["one image"])
        beams = llavaov15.generate(**inputs, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
        assert beams.shape[0] == 2
        assert answers(llavaov15, inputs) == answers(llavaov15, inputs, num_beams=1)

    @torch.no_grad()
    def test_text_alone(self, llavaov15, processor):
        inputs = inputs_of(processor, [("only words", [], []), ("fewer", [], [])])
        single = inputs_of(processor, [("fewer", [], [])])
        assert answers(llavaov15, inputs)[1:] == answers(llavaov15, single)

    def test_loss_trains_every_part(self, processor):
        model, inputs = tiny_llavaov15(), inputs_of(processor, ["one image"])
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


class TestMismatch:
    def test_counts(self, llavaov15, processor):
        inputs = inputs_of(processor, ["one image"])
        short = {key: inputs[key][:, 10:] for key in ("input_ids", "attention_mask")}
        with pytest.raises(ValueError, match="16 image placeholders for 20 image tokens"):
            llavaov15(**{**inputs, **short})
        with pytest.raises(ValueError, match="20 image placeholders for 0 image tokens"):
            llavaov15(input_ids=inputs["input_ids"])
        with pytest.raises(ValueError, match="0 video placeholders for 20 video tokens"):
            llavaov15(**inputs, pixel_values_videos=inputs["pixel_values"], video_grid_thw=inputs["image_grid_thw"])

    def test_what_is_missing(self, llavaov15, processor):
        inputs = inputs_of(processor, ["one image"])
        embeds = llavaov15.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(ValueError, match="image_grid_thw"):
            llavaov15(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        pixels = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
        with pytest.raises(ValueError, match="need input_ids"):
            llavaov15(inputs_embeds=embeds, **pixels)
        with pytest.raises(ValueError, match="pass input_ids or inputs_embeds"):
            llavaov15()


class TestProcessor:
    @pytest.mark.parametrize("files", ["saved", "older", "older with its class"])
    @torch.no_grad()
    def test_found_from_the_checkpoints_own_files(self, tmp_path, processor, files):
        register()
        folder, _ = released_folder(tmp_path / MODEL_TYPE)
        if files == "saved":
            processor.save_pretrained(folder)
        else:
            save_older_files(processor, folder)
        if files == "older with its class":
            file = folder / "preprocessor_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "processor_class": "Qwen2_5_VLProcessor"}))
        found = AutoProcessor.from_pretrained(folder)
        assert type(found) is Qwen2_5_VLProcessor
        assert found.image_processor.temporal_patch_size == found.video_processor.temporal_patch_size == 1
        assert found.image_processor.size["longest_edge"] == 64 * 28 * 28
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "?"}]}]
        prompt = found.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert IMAGE in prompt
        assert VIDEO in prompt
        inputs = inputs_of(found, ["mixed"])
        assert inputs["pixel_values"].shape[1] == inputs["pixel_values_videos"].shape[1] == 588
        assert inputs["video_grid_thw"].tolist() == [[4, 4, 6]]
        model = AutoModelForImageTextToText.from_pretrained(folder)
        assert model(**inputs).logits.isfinite().all()
