"""Fixtures of the embedded models' tests."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from harness.pocket.photo import assets


@pytest.fixture
def drawn_assets(monkeypatch):
    """Emoji and photographs that need no package: a disc of a colour of its own, and noise."""

    def emoji(style, code):
        picture = Image.new("RGBA", (64, 64))
        shade = (hash((style, code)) % 200, len(code) * 20 % 256, 90, 255)
        ImageDraw.Draw(picture).ellipse((0, 0, 63, 63), fill=shade)
        return picture

    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    monkeypatch.setattr(assets, "emoji", emoji)
    monkeypatch.setattr(assets, "photographs", lambda test: (Image.fromarray(noise),))
    monkeypatch.setattr(assets, "clutter", lambda test: ("1f37a",))
