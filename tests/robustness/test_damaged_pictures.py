"""Pictures that are damaged, or of unusual kinds: the model is shown them, or the question fails with a reason."""

import io
from functools import cache

from damage import damaged
from hypothesis import given
from hypothesis import strategies as st
from kinds import inputs
from PIL import Image

from harness.core.config import ModelConfig
from harness.models.bad_input import BadInput
from harness.models.limits import limits_of
from harness.models.preprocessing import to_inputs

QUICK = inputs(250)
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]


@cache
def encoded(kind):
    picture = Image.linear_gradient("L").resize((24, 18)).convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def shown(processor, picture):
    limits = limits_of(processor, ModelConfig(name="m", pretrained="p", min_pixels=784, max_pixels=784 * 4))
    message = {"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "What?"}]}
    inputs = to_inputs(processor, [[message]], limits)
    assert inputs["pixel_values"].isfinite().all()


@QUICK
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]), st.data())
def test_damaged_files(ends_well, processor, tmp_path, kind, data):
    file = tmp_path / f"picture.{kind.lower()}"
    file.write_bytes(data.draw(damaged(encoded(kind))))
    ends_well(shown, processor, str(file), refusal=BadInput)


@QUICK
@given(st.sampled_from(MODES), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 1, 30]), st.randoms())
def test_any_mode_and_shape(ends_well, processor, mode, width, height, stretch, rng):
    picture = Image.new(mode, (width * stretch, height))
    if mode == "P":
        picture.putpalette([rng.randrange(256) for _ in range(768)])
        if rng.random() < 0.5:
            picture.info["transparency"] = rng.randrange(256)
    ends_well(shown, processor, picture, refusal=BadInput)
