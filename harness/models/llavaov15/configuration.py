"""Configurations of LLaVA-OneVision-1.5, with the released field names and the 8B model's sizes as defaults.

Each has an `__init__`, because transformers before 5.4 does not support annotated fields.
"""

from typing import Any, ClassVar

from transformers import PreTrainedConfig, Qwen3Config


class RiceVitConfig(PreTrainedConfig):
    """The RICE vision tower with its merger.

    unpack: how CLS rows are removed from the packed units. `released` does as the released model, which shifts the
    patches of every unit but the first by one row per earlier unit; `fixed` removes exactly the CLS rows.
    text_hidden_size: width of the language model; the default is the 4B model's, as in the released class.
    """

    model_type = "rice_vit"
    base_config_key = "vision_config"
    attribute_map: ClassVar[dict[str, str]] = {
        "embed_dim": "hidden_size",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "depth",
    }

    def __init__(
        self,
        depth: int = 24,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_heads: int = 16,
        hidden_act: str = "gelu",
        in_channels: int = 3,
        patch_size: int = 14,
        spatial_merge_size: int = 2,
        temporal_patch_size: int = 1,
        layer_norm_eps: float = 1e-5,
        text_hidden_size: int = 2560,
        initializer_range: float = 0.02,
        unpack: str = "released",
        **kwargs: Any,
    ) -> None:
        if temporal_patch_size != 1:
            raise ValueError(f"temporal_patch_size must be 1, not {temporal_patch_size}: every frame is a unit")
        self.depth = depth
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_heads = num_heads
        self.hidden_act = hidden_act
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.temporal_patch_size = temporal_patch_size
        self.layer_norm_eps = layer_norm_eps
        self.text_hidden_size = text_hidden_size
        self.initializer_range = initializer_range
        self.unpack = unpack
        super().__init__(**kwargs)


class LlavaOnevision15TextConfig(Qwen3Config):
    """The language model: Qwen3's fields and arithmetic with full attention in every layer."""

    model_type = "LLaVAOneVision1_5_text"
    base_config_key = "text_config"
    default_theta = 1_000_000.0

    def __init__(
        self,
        intermediate_size: int = 12288,
        num_hidden_layers: int = 36,
        num_key_value_heads: int | None = 8,
        **kwargs: Any,
    ) -> None:
        sizes: dict[str, Any] = {"intermediate_size": intermediate_size, "num_key_value_heads": num_key_value_heads}
        super().__init__(num_hidden_layers=num_hidden_layers, **sizes, **kwargs)
        if set(self.layer_types or ()) - {"full_attention"}:
            raise ValueError("LLaVA-OneVision-1.5 has full attention in every layer: set use_sliding_window to false")


class LlavaOnevision15Config(PreTrainedConfig):
    """Configuration of the whole model.

    `vocab_size` is the released top-level value; the real one is in the text part. The tokens of vision's start and end
    surround the placeholders of every image and video.
    """

    model_type = "llavaonevision1_5"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "vision_config": RiceVitConfig,
        "text_config": LlavaOnevision15TextConfig,
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        image_token_id: int = 151655,
        video_token_id: int = 151656,
        vision_start_token_id: int | None = 151652,
        vision_end_token_id: int | None = 151653,
        vocab_size: int = 152064,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(text_config, PreTrainedConfig):
            text_config = LlavaOnevision15TextConfig(**(text_config or {}))
        width = text_config.hidden_size
        if not isinstance(vision_config, PreTrainedConfig):
            vision_config = RiceVitConfig(**{"text_hidden_size": width, **(vision_config or {})})
        if vision_config.text_hidden_size != width:
            tower = vision_config.text_hidden_size
            raise ValueError(f"vision_config.text_hidden_size is {tower}, but text_config.hidden_size is {width}")
        self.vision_config = vision_config
        self.text_config = text_config
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.vision_start_token_id = vision_start_token_id
        self.vision_end_token_id = vision_end_token_id
        self.vocab_size = vocab_size
        tied = tie_word_embeddings or bool(text_config.tie_word_embeddings)
        super().__init__(**{"tie_word_embeddings": tied, **kwargs})

    @property
    def unpack(self) -> str:
        """`unpack` of the vision tower, so that `from_pretrained(..., unpack="fixed")` sets it."""
        return str(self.vision_config.unpack)

    @unpack.setter
    def unpack(self, value: str) -> None:
        self.vision_config.unpack = value
