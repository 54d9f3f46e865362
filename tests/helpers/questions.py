"""Questions about random pictures and clips, as chat messages, with the pixel limits of the tests."""

import numpy as np
from PIL import Image

from harness.models.limits import PixelLimits

LIMITS = PixelLimits(min_pixels=4 * 784, max_pixels=64 * 784, max_frames=4)


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ask(*media, text="what?"):
    kinds = [{"type": "video" if isinstance(m, list | str) else "image", "url": m} for m in media]
    return [{"role": "user", "content": [*kinds, {"type": "text", "text": text}]}]


def clip(file, frames, width=56, height=56, rate=4, codec="mpeg4"):
    """Write a video of `rate` one-coloured frames per second to `file`; return the frames."""
    import av

    images = [Image.new("RGB", (width, height), (30 * i % 256, 0, 255 - 30 * i % 256)) for i in range(frames)]
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return images
