"""What a model is shown at most: pixels of images and frames, and how many frames of a video."""

from dataclasses import dataclass
from typing import Any

from harness.core.config import MIN_FRAMES, ModelConfig
from harness.models.videos import FrameRule

# Most visual tokens of a frame and of a video: the limits of qwen_vl_utils, also of Qwen2.5-VL's published scores
FRAME_TOKENS = 768
VIDEO_TOKENS = 115_200


@dataclass(frozen=True)
class PixelLimits(FrameRule):
    """Limits of pixels per image or frame, and the rule for frames. Frames also have the limits of `of_frames`."""

    min_pixels: int = 256 * 784
    max_pixels: int = 2048 * 784
    max_frames: int = 32
    fps: float | None = None
    min_frames: int = MIN_FRAMES

    def of_frames(self, count: int, patch: int, span: int) -> dict[str, Any]:
        """Return the limits of a video of `count` frames as arguments of `fetch_video`; a token spans `span` frames."""
        pixels = (2 * patch) ** 2  # of one visual token in one frame
        cap = max(min(FRAME_TOKENS, span * VIDEO_TOKENS / count) * pixels, int(1.05 * self.min_pixels))
        limits = {"min_pixels": self.min_pixels, "max_pixels": min(self.max_pixels, cap)}
        # Without a total, qwen_vl_utils reads the environment's MODEL_SEQ_LEN; it assumes two frames per token.
        return {**limits, "total_pixels": VIDEO_TOKENS * pixels * span // 2}


@dataclass(frozen=True)
class FrameLimit(FrameRule):
    """The rule for frames, for processors with a resolution of their own."""

    max_frames: int = 32
    fps: float | None = None
    min_frames: int = MIN_FRAMES


Limits = PixelLimits | FrameLimit | None  # None: images of one resolution only


def limits_of(processor: Any, model: ModelConfig) -> Limits:
    """Return the limits that apply to a processor; ValueError if some are set that do not apply or fit."""
    of_frames = ("max_frames", "fps", "min_frames")
    settings = {key: getattr(model, key) for key in ("min_pixels", "max_pixels", *of_frames)}
    settings = {key: value for key, value in settings.items() if value is not None}
    if not hasattr(processor.image_processor, "merge_size"):
        # InternVL's passes frames on as images; it shows videos only where a number of frames is set.
        by_name = "pixel_values_videos" in processor.model_input_names
        shows_videos = by_name or ("max_frames" in settings and hasattr(processor, "video_processor"))
        unused = {key: value for key, value in settings.items() if key not in of_frames or not shows_videos}
        if unused:
            listed = ", ".join(f"model.{key}={value}" for key, value in unused.items())
            nulls = " ".join(f"model.{key}=null" for key in unused)
            raise ValueError(f"{listed}: {type(processor).__name__} has a resolution of its own, pass {nulls}")
        return FrameLimit(**settings) if shows_videos else None
    limits = PixelLimits(**settings)
    if limits.min_pixels > limits.max_pixels:
        low, high = limits.min_pixels, limits.max_pixels
        raise ValueError(f"model.min_pixels={low} must lie between 1 and model.max_pixels={high}")
    return limits
