"""The model LLaVA-OneVision-1.5: RICE vision tower, Qwen3 decoder with 1-D positions, generation."""

# ruff: noqa: RUF012 (transformers wants these class attributes as lists and dictionaries)

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, Qwen3Model
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils import can_return_tuple

from harness.models.compat import (
    CACHE,
    PixelsInPrefill,
    cache_argument,
    causal_mask,
    model_forward,
)
from harness.models.llavaov15.configuration import LlavaOnevision15Config, LlavaOnevision15TextConfig
from harness.models.llavaov15.vision import RiceVisionModel

KINDS = {"image": 1, "video": 2}  # as in the processor's mm_token_type_ids


class LlavaOnevision15TextModel(Qwen3Model):
    """Qwen3's modules, tensor names and arithmetic.

    Positions are used by the rotary embedding only. In Qwen3Model, and in the wrapper of the flash kernel, a jump also
    means that the next packed sequence begins. Here tokens may be missing, and packing is not supported.
    """

    config: LlavaOnevision15TextConfig

    @model_forward
    @cache_argument
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run token ids [B, S] or embeddings [B, S, D] -> `last_hidden_state` [B, S, D]; position_ids [B or 1, S]."""
        hidden = embeddings_of(self.embed_tokens, input_ids, inputs_embeds)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = text_positions(hidden, attention_mask, cache)
        if isinstance(attention_mask, dict):  # generate() made it for a static cache
            mask: Any = attention_mask["full_attention"]
        else:
            mask = causal_mask(self.config, hidden, attention_mask, cache)
        rotation = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotation,
                use_cache=use_cache,
                **{CACHE: cache},
                **kwargs,
            )
        fields: dict[str, Any] = {"last_hidden_state": self.norm(hidden), CACHE: cache if use_cache else None}
        return BaseModelOutputWithPast(**fields)


class LlavaOnevision15PreTrainedModel(PreTrainedModel):
    """Settings for transformers that both models below share."""

    config: LlavaOnevision15Config
    base_model_prefix = "model"
    input_modalities = ["image", "video", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen3DecoderLayer", "RiceBlock"]
    _skip_keys_device_placement = [CACHE]
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)visual\.importance_scorer\."]  # in VisionSelector's checkpoints
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True


class LlavaOnevision15Model(LlavaOnevision15PreTrainedModel):
    """Vision tower and decoder; visual tokens replace the embeddings of their placeholders."""

    def __init__(self, config: LlavaOnevision15Config) -> None:
        super().__init__(config)
        self.visual = RiceVisionModel._from_config(config.vision_config)
        self.language_model = LlavaOnevision15TextModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's embedding table, which some versions of transformers do not find."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's embedding table."""
        self.language_model.embed_tokens = value

    # generate() passes to the next two methods those of its arguments that are in their signatures.
    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, image_grid_thw: Tensor, mm_token_type_ids: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images; `pooler_output` has one tensor [tokens, D] per image.

        `mm_token_type_ids` [B, S], 1 on image placeholders, says which prompt an image belongs to: see
        `RiceVisionModel`.
        """
        return self._encode(pixel_values, image_grid_thw, "image", mm_token_type_ids)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        video_grid_thw: Tensor,
        mm_token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode videos like images; their placeholders are 2 in `mm_token_type_ids`."""
        return self._encode(pixel_values_videos, video_grid_thw, "video", mm_token_type_ids)

    @can_return_tuple
    @cache_argument
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run token ids [B, S] with patches [P, values] and grids [n, 3] -> `last_hidden_state` [B, S, D].

        generate() encodes images first and passes `mm_encoder_outputs` instead of patches. `mm_token_type_ids` and
        `second_per_grid_ts` are outputs of the processor that are not needed here.
        """
        kinds = None if input_ids is None else self._kinds(input_ids)
        encoded = dict(mm_encoder_outputs or {})
        if pixel_values is not None:
            encoded["image"] = self._encode(pixel_values, image_grid_thw, "image", kinds)
        if pixel_values_videos is not None:
            encoded["video"] = self._encode(pixel_values_videos, video_grid_thw, "video", kinds)
        embeds = embeddings_of(self.language_model.embed_tokens, input_ids, inputs_embeds)
        prompt = cache is None or not cache.get_seq_length()
        if encoded or (prompt and kinds is not None):  # a placeholder id in a decoding step is an ordinary token
            embeds = self._scatter(embeds, kinds, encoded)
        if position_ids is None:
            position_ids = text_positions(embeds, attention_mask, cache)
        outputs: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        return outputs

    def _kinds(self, input_ids: Tensor) -> Tensor:
        """Return [B, S]: 1 on placeholders of images, 2 on those of videos, else 0."""
        ids = {"image": self.config.image_token_id, "video": self.config.video_token_id}
        return sum((input_ids == ids[kind]) * code for kind, code in KINDS.items())  # type: ignore[return-value]

    def _encode(
        self, pixels: Tensor, grid_thw: Tensor | None, kind: str, kinds: Tensor | None
    ) -> BaseModelOutputWithPooling:
        if grid_thw is None:
            raise ValueError(f"{kind}s came without {kind}_grid_thw: pass all that the processor returned")
        tokens = grid_thw.prod(-1) // self.visual.spatial_merge_size**2
        prompts = None
        if kinds is not None:  # an image belongs to the prompt that contains its last placeholder
            placeholders = (kinds == KINDS[kind]).sum(1).cumsum(0)
            prompts = torch.searchsorted(placeholders, tokens.cumsum(0).to(placeholders.device))
        outputs: Any = self.visual(pixels, grid_thw=grid_thw, prompts=prompts)
        outputs.pooler_output = torch.split(outputs.pooler_output, tokens.tolist())
        return outputs

    def _scatter(self, embeds: Tensor, kinds: Tensor | None, encoded: dict[str, Any]) -> Tensor:
        """Replace the embeddings [B, S, D] at the placeholders of each kind by its visual tokens, in order."""
        if kinds is None:
            raise ValueError("images and videos need input_ids: their places are found by the placeholders")
        for kind, code in KINDS.items():
            mask, output = kinds == code, encoded.get(kind)
            features = embeds[0, :0] if output is None else torch.cat(list(output.pooler_output))
            places = int(mask.sum())
            if places != len(features):
                raise ValueError(f"input_ids have {places} {kind} placeholders for {len(features)} {kind} tokens")
            if places:
                mask = mask.unsqueeze(-1).to(embeds.device)
                embeds = embeds.masked_scatter(mask, features.to(embeds.device, embeds.dtype))
        return embeds


class LlavaOnevision15ForConditionalGeneration(LlavaOnevision15PreTrainedModel, PixelsInPrefill, GenerationMixin):
    """The model with its language-modelling head, under the tensor names of the released checkpoints."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    accepts_loss_kwargs = False

    def __init__(self, config: LlavaOnevision15Config) -> None:
        super().__init__(config)
        text = config.get_text_config()
        self.model = LlavaOnevision15Model(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @cache_argument
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the arguments of `LlavaOnevision15Model` -> `logits` [B, S, vocabulary], or the last `logits_to_keep`."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE: cache},
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, rows])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.lm_head.out_features, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def embeddings_of(table: nn.Module, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return `inputs_embeds`, or embeddings [B, S, D] of `input_ids`."""
    if inputs_embeds is not None:
        return inputs_embeds
    if input_ids is None:
        raise ValueError("pass input_ids or inputs_embeds")
    embeddings: Tensor = table(input_ids)
    return embeddings


def text_positions(embeds: Tensor, attention_mask: Any, cache: Cache | None) -> Tensor:
    """Return positions [B, S] that skip padding, or [1, S] after the cache if there is no mask [B, past + S]."""
    length = embeds.shape[1]
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        counted = attention_mask.long().cumsum(-1) - 1
        return counted.masked_fill(attention_mask == 0, 0)[:, -length:]  # as generate() does
    past = 0 if cache is None else cache.get_seq_length()
    return torch.arange(length, device=embeds.device).unsqueeze(0) + past
