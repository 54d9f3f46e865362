"""LLaVA-OneVision-1.5: the vision tower against a plain float64 transcription."""

import pytest
import torch
from attention_kernels import KERNELS, with_kernel
from probes import Watch
from reference_prune import inputs_of
from tiny_llavaov15 import GRIDS, UNPACK, llavaov15_processor, pixels_of, plain_vision, vision_of

import harness
from harness.models.llavaov15.vision import patch_angles


class TestVision:
    @pytest.mark.parametrize("unpack", ["released", "fixed"])
    @pytest.mark.parametrize("name", GRIDS)
    @torch.no_grad()
    def test_like_the_plain_transcription(self, llavaov15, name, unpack):
        pixels, grid = pixels_of(GRIDS[name])
        output = vision_of(llavaov15, unpack)(pixels, grid_thw=grid)
        rows, tokens = plain_vision(llavaov15, pixels, GRIDS[name], unpack == "fixed")
        torch.testing.assert_close(output.last_hidden_state.double(), rows, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.pooler_output.double(), tokens, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_unpacking_differs_from_the_second_unit_on(self, llavaov15):
        pixels, grid = pixels_of(GRIDS["frames"])
        released, fixed = (vision_of(llavaov15, kind)(pixels, grid_thw=grid).last_hidden_state for kind in UNPACK)
        assert torch.equal(released[:8], fixed[:8])
        assert (released[8:] - fixed[8:]).abs().amin(0).max() > 1e-3
        assert torch.equal(released[9:16], fixed[8:15])  # one row per earlier unit
        assert torch.equal(released[18:24], fixed[16:22])
        single = [vision_of(llavaov15, kind)(pixels[:8], grid_thw=torch.tensor([[1, 4, 2]])) for kind in UNPACK]
        assert torch.equal(single[0].pooler_output, single[1].pooler_output)

    @pytest.mark.parametrize("prompts", [None, [0, 0, 0, 0], [0, 0, 1, 2], [0, 3, 3, 3], [1, 2, 3, 4]])
    @torch.no_grad()
    def test_released_unpacking_begins_anew_with_every_prompt(self, llavaov15, prompts):
        tower, sizes = vision_of(llavaov15), [[1, 4, 4], [2, 2, 6], [1, 2, 2], [1, 4, 2]]
        pixels, grid = pixels_of(sizes)
        index = None if prompts is None else torch.tensor(prompts)
        together = tower(pixels, grid_thw=grid, prompts=index).pooler_output
        alone, parts = [], pixels.split(grid.prod(-1).tolist())
        for prompt in sorted(set(prompts or [0])):
            mine = [i for i in range(4) if prompts is None or prompts[i] == prompt]
            alone.append(tower(torch.cat([parts[i] for i in mine]), grid_thw=grid[mine]).pooler_output)
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_units_do_not_see_each_other(self, llavaov15):
        tower = vision_of(llavaov15, "fixed")
        pixels, grid = pixels_of(GRIDS["two images"])
        together = tower(pixels, grid_thw=grid).pooler_output
        alone = [
            tower(part, grid_thw=g.view(1, 3)).pooler_output
            for part, g in zip(pixels.split([16, 12]), grid, strict=True)
        ]
        torch.testing.assert_close(together, torch.cat(alone))

    @torch.no_grad()
    def test_kernels_agree(self, llavaov15):
        pixels, grid = pixels_of(GRIDS["image and frames"])
        outputs = []
        for attn in KERNELS:
            tower = with_kernel(vision_of(llavaov15), attn)
            outputs.append(tower(pixels, grid_thw=grid).pooler_output)
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-5)

    def test_rotation_is_float32_in_half_precision(self, llavaov15):
        seen = []
        tower = vision_of(llavaov15).bfloat16()
        hook = tower.blocks[0].attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.extend(kwargs["position_embeddings"]), with_kwargs=True
        )
        pixels, grid = pixels_of(GRIDS["one image"])
        assert tower(pixels, grid_thw=grid).pooler_output.dtype == torch.bfloat16
        hook.remove()
        assert [tensor.dtype for tensor in seen] == [torch.float32] * 2
        assert [list(tensor.shape) for tensor in seen] == [[25, 16]] * 2  # a CLS row in front, the head's width

    def test_angles_of_the_released_size(self):
        angles = patch_angles(torch.tensor([[2, 4, 2]]), merge=2, dim=32)
        assert angles.shape == (16, 32)
        assert torch.equal(angles[:8], angles[8:])
        assert angles[:8, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # rows of the patches, in 2x2 order
        assert angles[:8, 16].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
        torch.testing.assert_close(angles[2, :16], 10_000 ** -(torch.arange(16) / 16))

    def test_what_does_not_fit_is_named(self, llavaov15):
        tower = vision_of(llavaov15)
        pixels, grid = pixels_of(GRIDS["one image"])
        with pytest.raises(ValueError, match=r"1176 values a patch.*takes 588.*temporal_patch_size 1"):
            tower(pixels.repeat(1, 2), grid_thw=grid)
        with pytest.raises(ValueError, match="have 24 patches, pixel_values 20"):
            tower(pixels[:20], grid_thw=grid)
        with pytest.raises(ValueError, match="multiples of 2"):
            tower(pixels[:9], grid_thw=torch.tensor([[1, 3, 3]]))


@pytest.mark.parametrize("unpack", ["released", "fixed"])
@torch.no_grad()
def test_methods_see_the_features_of_the_tower(llavaov15, monkeypatch, unpack):
    monkeypatch.setattr(llavaov15.config, "unpack", unpack)
    inputs, watch = inputs_of(llavaov15_processor(), ["adjacent"]), Watch()
    with harness.prune(llavaov15, watch, keep=0.5):
        llavaov15(**inputs)
    features = llavaov15.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    torch.testing.assert_close(watch.seen[0].features, torch.cat(list(features)))
