"""What transformers renamed or moved between 5.0 and 5.24, behind one name each.

Whether this version has a name is asked of the library, never of its number. docs/versions.md says what ran on which.
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
qwen25 = import_module("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")

_MASK_ARGUMENTS = signature(masks.create_causal_mask).parameters
CACHE = "cache" if "cache" in _MASK_ARGUMENTS else "past_key_values"  # in calls and outputs; before 5.24 the latter
CLIP_ENCODER = "vision_model.encoder" if hasattr(clip, "CLIPVisionTransformer") else "encoder"  # the latter since 5.6
MAX_SEQLEN = "max_seqlen" in signature(qwen25.Qwen2_5_VLVisionAttention.forward).parameters  # since 5.15
ENCODES_AHEAD = "mm_encoder_outputs" in signature(qwen25.Qwen2_5_VLModel.forward).parameters  # generate(), since 5.18


def model_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Fill arguments in from the configuration, and return hidden states where they are asked for."""
    if not hasattr(generic, "merge_with_config_defaults"):  # before 5.2
        return generic.check_model_inputs(forward)
    capturing = import_module("transformers.utils.output_capturing")
    return generic.merge_with_config_defaults(capturing.capture_outputs(forward))


def cache_argument(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the argument `cache` of `forward` under the name of this version; both names are taken, as upstream."""

    @wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    parameters = signature(forward).parameters.values()
    names = [one.replace(name=CACHE) if one.name == "cache" else one for one in parameters]
    vars(renamed)["__signature__"] = signature(forward).replace(parameters=names)
    return renamed


def causal_mask(config: Any, states: Tensor, padding: Tensor | None, cache: Any) -> Any:
    """Return the mask that the model's attention kernel takes, for `states` [B, L, D] after what `cache` holds."""
    arguments = {"config": config, "attention_mask": padding, CACHE: cache}
    arguments["inputs_embeds" if "inputs_embeds" in _MASK_ARGUMENTS else "input_embeds"] = states  # before 5.2
    if "cache_position" in _MASK_ARGUMENTS:  # read before 5.4, gone in 5.9
        past = 0 if cache is None else cache.get_seq_length()
        arguments["cache_position"] = torch.arange(past, past + states.shape[1], device=states.device)
    return masks.create_causal_mask(**arguments)


def rotate_qwen25(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Turn q and k [B, H, S, d] of a decoder layer; cos and sin are [B, S, d], or [3, B, S, d] before 5.17."""
    if cos.ndim == 3:
        return qwen25.apply_rotary_pos_emb(q, k, cos, sin)
    return qwen25.apply_multimodal_rotary_pos_emb(q, k, cos, sin, config.rope_parameters["mrope_section"])


def window_order(config: Any, grids: Tensor) -> Tensor:
    """Return which token [N] stands where while Qwen2.5-VL's vision tower encodes images of `grids` [images, 3]."""
    sizes = {name: getattr(config, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
    if hasattr(qwen25, "get_vision_window_index"):
        return qwen25.get_vision_window_index(grids, **sizes)[0]
    tower = SimpleNamespace(**sizes, spatial_merge_unit=config.spatial_merge_size**2)  # a method of it before 5.9
    return qwen25.Qwen2_5_VisionTransformerPretrainedModel.get_window_index(tower, grids)[0]


def register_image_processors(config: type) -> None:
    """Let AutoImageProcessor read images for models with this configuration as Qwen2-VL does."""
    if hasattr(tf, "Qwen2VLImageProcessorPil"):
        kinds = {"torchvision": tf.Qwen2VLImageProcessor, "pil": tf.Qwen2VLImageProcessorPil}
        tf.AutoImageProcessor.register(config, image_processor_classes=kinds, exist_ok=True)
    else:  # before 5.4
        tf.AutoImageProcessor.register(config, tf.Qwen2VLImageProcessor, tf.Qwen2VLImageProcessorFast, exist_ok=True)


class PixelsInPrefill:
    """Mixin of a port that takes Qwen2.5-VL's arguments: before 5.18 generate() does not encode images in advance."""

    _qwen = qwen25.Qwen2_5_VLForConditionalGeneration
    if not ENCODES_AHEAD:
        _get_image_nums_and_video_nums = _qwen._get_image_nums_and_video_nums
        _expand_inputs_for_generation = _qwen._expand_inputs_for_generation  # copies pixels for beams

        def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            """Leave the pixels out of all passes but the first, unless there is no cache."""
            inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
            later = not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True)
            return inputs | {"pixel_values": None, "pixel_values_videos": None} if later else inputs
