"""Configurations of LLaVA-OneVision-1.5: the released field names, the 8B model's sizes as defaults."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen3Config


@strict
class RiceVitConfig(PreTrainedConfig):
    """The RICE vision tower with its merger.

    unpack: how the CLS rows are taken out of the packed units. `released` repeats the released model, which shifts the
    patches of every unit but the first by one row per earlier unit; `fixed` does what was meant.
    """

    model_type = "rice_vit"
    base_config_key = "vision_config"
    attribute_map: ClassVar[dict[str, str]] = {
        "embed_dim": "hidden_size",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "depth",
    }

    depth: int = 24
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_heads: int = 16
    hidden_act: str = "gelu"
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: Literal[1] = 1
    layer_norm_eps: float = 1e-5
    text_hidden_size: int = 2560  # width of the language model; the released class has the 4B model's
    initializer_range: float = 0.02
    unpack: Literal["released", "fixed"] = "released"


@strict
class LlavaOnevision15TextConfig(Qwen3Config):
    """The language model: Qwen3's fields and arithmetic with full attention in every layer."""

    model_type = "LLaVAOneVision1_5_text"
    base_config_key = "text_config"
    default_theta = 1_000_000.0

    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_key_value_heads: int | None = 8

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if set(self.layer_types or ()) - {"full_attention"}:
            raise ValueError("LLaVA-OneVision-1.5 has full attention in every layer: set use_sliding_window to false")


@strict
class LlavaOnevision15Config(PreTrainedConfig):
    """Vision tower and language model; `vocab_size` is the released top-level value, the text part has the real one."""

    model_type = "llavaonevision1_5"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "vision_config": RiceVitConfig,
        "text_config": LlavaOnevision15TextConfig,
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int | None = 151652  # beside the placeholders of every image and video; only named here
    vision_end_token_id: int | None = 151653
    vocab_size: int = 152064
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = LlavaOnevision15TextConfig(**(self.text_config or {}))
        width = self.text_config.hidden_size
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = RiceVitConfig(**{"text_hidden_size": width, **(self.vision_config or {})})
        if self.vision_config.text_hidden_size != width:
            made = self.vision_config.text_hidden_size
            raise ValueError(f"vision_config.text_hidden_size is {made}, but text_config.hidden_size is {width}")
        self.tie_word_embeddings |= bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)

    @property
    def unpack(self) -> str:
        """The vision tower's, so that `from_pretrained(..., unpack="fixed")` reaches it."""
        return str(self.vision_config.unpack)  # type: ignore[union-attr]

    @unpack.setter
    def unpack(self, value: str) -> None:
        self.vision_config.unpack = value  # type: ignore[union-attr]
