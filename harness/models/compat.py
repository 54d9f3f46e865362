"""One name for each thing that transformers renamed or moved between 5.0 and 5.24.

The code tests whether the library has a name, never its version number. docs/versions.md lists what was run on which
version.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

tf, generic = import_module("transformers"), import_module("transformers.utils.generic")
masks, clip = import_module("transformers.masking_utils"), import_module("transformers.models.clip.modeling_clip")
siglip = import_module("transformers.models.siglip.modeling_siglip")
dinov2 = import_module("transformers.models.dinov2.modeling_dinov2")
qwen25 = import_module("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")

_MASK_ARGUMENTS = signature(masks.create_causal_mask).parameters
CACHE = "cache" if "cache" in _MASK_ARGUMENTS else "past_key_values"  # in calls and outputs; renamed in 5.24
CLIP_ENCODER = "vision_model.encoder" if hasattr(clip, "CLIPVisionTransformer") else "encoder"  # shorter since 5.6
SIGLIP_ENCODER = "vision_model.encoder" if hasattr(siglip, "SiglipVisionTransformer") else "encoder"  # since 5.6
# DINOv2's attention below a layer, and the projections below that; shorter since 5.18
DINOV2_QK = ("attention", ("q_proj", "k_proj"))
if hasattr(dinov2, "Dinov2SelfAttention"):
    DINOV2_QK = ("attention.attention", ("query", "key"))
MAX_SEQLEN = "max_seqlen" in signature(qwen25.Qwen2_5_VLVisionAttention.forward).parameters  # since 5.15
ENCODES_AHEAD = "mm_encoder_outputs" in signature(qwen25.Qwen2_5_VLModel.forward).parameters  # generate(), since 5.18


def model_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a forward pass: fill in arguments from the configuration, and return hidden states if requested."""
    if not hasattr(generic, "merge_with_config_defaults"):  # before 5.2
        return generic.check_model_inputs(forward)
    capturing = import_module("transformers.utils.output_capturing")
    return generic.merge_with_config_defaults(capturing.capture_outputs(forward))


def cache_argument(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate `forward`: its argument `cache` is declared under the name of this version, and taken under both."""

    @wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    declared = signature(forward)
    parameters = [p.replace(name=CACHE) if p.name == "cache" else p for p in declared.parameters.values()]
    vars(renamed)["__signature__"] = declared.replace(parameters=parameters)
    return renamed


def causal_mask(config: Any, states: Tensor, padding: Tensor | None, cache: Any) -> Any:
    """Return the attention kernel's causal mask for `states` [B, L, D] that follow the rows in `cache`."""
    arguments = {"config": config, "attention_mask": padding, CACHE: cache}
    arguments["inputs_embeds" if "inputs_embeds" in _MASK_ARGUMENTS else "input_embeds"] = states  # before 5.2
    if "cache_position" in _MASK_ARGUMENTS:  # read before 5.4, gone in 5.9
        past = 0 if cache is None else cache.get_seq_length()
        arguments["cache_position"] = torch.arange(past, past + states.shape[1], device=states.device)
    return masks.create_causal_mask(**arguments)


def rotate_qwen25(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Rotate q and k [B, H, S, d] of a decoder layer; cos and sin are [B, S, d], or [3, B, S, d] before 5.17."""
    if cos.ndim == 3:
        return qwen25.apply_rotary_pos_emb(q, k, cos, sin)
    return qwen25.apply_multimodal_rotary_pos_emb(q, k, cos, sin, config.rope_parameters["mrope_section"])


def window_order(config: Any, grids: Tensor) -> Tensor:
    """Return the order [N] of tokens inside Qwen2.5-VL's vision tower, for images of `grids` [images, 3]."""
    sizes = {name: getattr(config, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
    if hasattr(qwen25, "get_vision_window_index"):
        return qwen25.get_vision_window_index(grids, **sizes)[0]
    tower = SimpleNamespace(**sizes, spatial_merge_unit=config.spatial_merge_size**2)  # before 5.9, a method
    return qwen25.Qwen2_5_VisionTransformerPretrainedModel.get_window_index(tower, grids)[0]


def register_image_processors(config: type) -> None:
    """Register Qwen2-VL's image processors for models with this configuration."""
    if hasattr(tf, "Qwen2VLImageProcessorPil"):
        processors = {"torchvision": tf.Qwen2VLImageProcessor, "pil": tf.Qwen2VLImageProcessorPil}
        tf.AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
    else:  # before 5.4
        tf.AutoImageProcessor.register(config, tf.Qwen2VLImageProcessor, tf.Qwen2VLImageProcessorFast, exist_ok=True)


class PixelsInPrefill:
    """Mixin of a port with Qwen2.5-VL's arguments, for versions before 5.18, where the prefill encodes the images."""

    _qwen = qwen25.Qwen2_5_VLForConditionalGeneration
    if not ENCODES_AHEAD:
        _get_image_nums_and_video_nums = _qwen._get_image_nums_and_video_nums
        _expand_inputs_for_generation = _qwen._expand_inputs_for_generation  # which copies pixels for beams

        def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            """Drop the pixels from all passes but the first, unless there is no cache."""
            inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
            later = not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True)
            return inputs | {"pixel_values": None, "pixel_values_videos": None} if later else inputs
