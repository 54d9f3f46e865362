"""LLaVA-OneVision-1.5: the decoder against a plain float64 transcription."""

import pytest
import torch
from attention_kernels import KERNELS, with_kernel
from reference_prune import inputs_of
from tiny_llavaov15 import TEXT, llavaov15_processor, plain_decoder, plain_vision, tiny_llavaov15
from transformers import Qwen3Config, Qwen3Model


class TestDecoder:
    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @torch.no_grad()
    def test_whole_model_like_the_plain_transcriptions(self, attn):
        model, inputs = tiny_llavaov15(attn), inputs_of(llavaov15_processor(), ["mixed"])
        ids = inputs["input_ids"][0]
        embeds = model.get_input_embeddings().weight[ids].double()
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            _, tokens = plain_vision(model, inputs[pixels], inputs[f"{kind}_grid_thw"].tolist(), fixed=False)
            embeds[ids == getattr(model.config, f"{kind}_token_id")] = tokens
        expected = plain_decoder(model, embeds, torch.arange(len(ids)))
        torch.testing.assert_close(model(**inputs).logits[0].double(), expected, atol=2e-3, rtol=1e-3)

    @torch.no_grad()
    def test_like_qwen3(self, llavaov15):
        stock = Qwen3Model(Qwen3Config(**TEXT, rope_parameters={"rope_type": "default", "rope_theta": 1e6})).eval()
        decoder = llavaov15.model.language_model
        stock.load_state_dict(decoder.state_dict())
        ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
        ours, theirs = (model(input_ids=ids, output_hidden_states=True) for model in (decoder, stock))
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
        assert len(ours.hidden_states) == len(theirs.hidden_states) == 3

    @torch.no_grad()
    def test_scale_of_the_query_and_key_projections_does_not_matter(self):
        model = tiny_llavaov15()
        ids = torch.arange(20, 40).view(1, -1)
        before = model(input_ids=ids).logits
        model.model.language_model.layers[0].self_attn.q_proj.weight *= 7.0
        model.model.language_model.layers[1].self_attn.k_proj.weight *= 5.0
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("attn", KERNELS)
    @torch.no_grad()
    def test_positions_may_jump(self, attn):
        """Where tokens are missing; Qwen3Model takes a jump for the start of another sequence."""
        model = with_kernel(tiny_llavaov15(), attn)
        embeds = model.get_input_embeddings()(torch.arange(30, 42))
        positions = torch.tensor([1, 2, 3, 7, 8, 20, 21, 22, 30, 31, 32, 33])
        expected = plain_decoder(model, embeds, positions)
        for use_cache in (True, False):
            logits = model(inputs_embeds=embeds[None], position_ids=positions[None], use_cache=use_cache).logits
            torch.testing.assert_close(logits[0].double(), expected, atol=1e-3, rtol=1e-3)
