"""Every family sees a picture upright, in 8 bits and on white, from a file as from memory; or says why it cannot."""

import base64
import io
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from questions import LIMITS, ask, picture
from tiny_families import BUILDERS

from harness.models.bad_input import BadInput
from harness.models.pictures import MAX_PIXELS, TURNS, as_rgb, check_files
from harness.models.preprocessing import messages_digest, to_inputs, visual_digest

PLAIN = picture(70, 42)
RED, WHITE = (255, 0, 0), (255, 255, 255)
RAMP = np.arange(0, 2**16, 2**16 // 24, dtype=np.uint16)[:24].reshape(4, 6)


@pytest.fixture(params=BUILDERS)
def shown(request):
    """Return a function from a picture or its file to what the family's vision tower gets."""
    processor = BUILDERS[request.param][1]()
    limits = LIMITS if hasattr(processor.image_processor, "merge_size") else None

    def pixels(source):
        parts = [{"type": "image", "url": source}, {"type": "text", "text": "?"}]
        return to_inputs(processor, [[{"role": "user", "content": parts}]], limits)["pixel_values"]

    return pixels


def data(image, kind="PNG", **settings):
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def reopened(image, kind="PNG", **settings):
    return Image.open(io.BytesIO(data(image, kind, **settings)))


def turned(orientation):
    """Return the picture that is `PLAIN` once it is turned by its EXIF data."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return PLAIN.transpose(TURNS[back]), {"exif": exif.tobytes()}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_stands_upright_for_every_family_from_a_file_as_from_memory(shown, orientation, tmp_path):
    image, exif = turned(orientation)
    image.save(tmp_path / "a.png", **exif)
    expected = shown(PLAIN)
    assert torch.equal(shown(reopened(image, **exif)), expected)
    assert torch.equal(shown(str(tmp_path / "a.png")), expected)
    assert torch.equal(shown(f"file://{tmp_path / 'a.png'}"), expected)
    assert not torch.equal(shown(image), expected)


def test_it_is_turned_once(tmp_path):
    image, exif = turned(6)
    once = as_rgb(reopened(image, "TIFF", **exif))
    assert np.array_equal(once, PLAIN)
    assert np.array_equal(as_rgb(once), PLAIN)


@pytest.mark.parametrize("damage", [b"Exif\0\0II*\0\x08", b"Exif\0\0junk", b"Exif\0\0"])
def test_damaged_exif_data_hide_no_picture(damage):
    image = PLAIN.copy()
    image.info["exif"] = damage
    assert np.array_equal(as_rgb(image), PLAIN)


def see_through(mode):
    """Return a red picture whose left half is transparent, so that its colour there is hidden."""
    image = Image.new("RGBA", (6, 4), (*RED, 255))
    image.paste((*RED, 0), (0, 0, 3, 4))
    if mode == "P":
        palette = Image.new("P", (6, 4), 1)
        palette.putpalette([*RED, *RED])
        palette.paste(0, (0, 0, 3, 4))
        return reopened(palette, transparency=0)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_what_is_transparent_is_white(shown, mode):
    image = see_through(mode)
    seen = np.asarray(as_rgb(image))
    assert (seen[:, :3] == WHITE).all()
    assert (seen[:, 3:] != WHITE).any(axis=2).all()
    assert torch.equal(shown(image), shown(Image.fromarray(seen)))


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7)), ("I;16", 7)])
def test_a_colour_that_is_declared_transparent_is_white(mode, key):
    values = np.full((4, 6), 7, np.uint16 if mode == "I;16" else np.uint8)
    values[:, 3:] = 9
    image = Image.fromarray(values).convert(mode) if mode == "RGB" else Image.fromarray(values)
    seen = np.asarray(as_rgb(reopened(image, transparency=key)))
    assert (seen[:, :3] == WHITE).all()
    assert (seen[:, 3:] < 10).all()


def test_half_transparent_is_half_white():
    assert as_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_high_byte(shown, kind, order):
    image = reopened(Image.fromarray(RAMP.astype(order)), kind)
    seen = np.asarray(as_rgb(image))
    assert (seen == (RAMP // 256)[..., None]).all()
    assert torch.equal(shown(image), shown(Image.fromarray((RAMP // 256).astype(np.uint8))))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_integers_and_floats_in_the_range_of_8_bits_are_shown(dtype):
    values = np.arange(24).reshape(4, 6) * 11
    assert (np.asarray(as_rgb(Image.fromarray(values.astype(dtype)))) == values[..., None]).all()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.array([[0, 256]], np.int32), "the pixels are integers from 0 to 256, without a known white: store 8 bits"),
        (np.array([[-1, 5]], np.int32), "integers from -1 to 5"),
        (np.array([[0, 0.5]], np.float32), "floats from 0 to 0.5"),
        (np.array([[0, 1e9]], np.float32), r"floats from 0 to 1e\+09"),
        (np.array([[0, np.nan]], np.float32), "floats from nan to nan"),
    ],
)
def test_numbers_of_which_nobody_says_what_is_white_are_not_guessed(shown, values, why):
    with pytest.raises(BadInput, match=why):
        shown(Image.fromarray(values))


def test_other_forms_are_shown_as_pillow_does():
    ink = PLAIN.convert("CMYK")
    assert np.array_equal(as_rgb(reopened(ink, "TIFF")), ink.convert("RGB"))
    for mode in ("1", "L", "YCbCr", "HSV"):
        assert np.array_equal(as_rgb(PLAIN.convert(mode)), PLAIN.convert(mode).convert("RGB"))
    first, second = (Image.new("RGB", (9, 9), colour) for colour in (RED, WHITE))
    animation = reopened(first, "GIF", save_all=True, append_images=[second], duration=40)
    assert as_rgb(animation).getpixel((4, 4)) == RED
    animation.seek(1)  # a task may choose a frame
    assert as_rgb(animation).getpixel((4, 4)) == WHITE


def test_addresses():
    address = "data:image/png;base64," + base64.b64encode(data(PLAIN)).decode()
    assert np.array_equal(as_rgb(address), PLAIN)
    with pytest.raises(BadInput, match="Error: Invalid base64-encoded string"):
        as_rgb("data:image/png;base64,a")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (Image.new("RGB", (0, 5)), r"the picture has no pixels \(0 x 5\)"),
        (Image.new("La", (5, 5)), "ValueError: conversion from La to L not supported"),
        (None, "the picture is None: expected a PIL image, a file or a URL"),
        ("", "the picture is '': expected"),
        ({"bytes": b"1" * 99}, r"the picture is \{'bytes': b'1+: expected"),
    ],
)
def test_what_is_no_picture_has_its_reason(shown, source, why):
    with pytest.raises(BadInput, match=why):
        shown(source)


def test_a_file_that_is_not_there_is_no_fault_of_the_question(shown, tmp_path):
    gone = str(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        shown(gone)
    for media in ([gone], [[gone, gone]], [f"file://{gone}"]):
        with pytest.raises(FileNotFoundError, match=r"gone\.png"):
            check_files(media)
    check_files([PLAIN, [PLAIN], "https://a/b.png", "data:,", "", None, {"url": []}])


@pytest.mark.parametrize("size", [(1, 1), (150, 1), (1, 150), (600, 20)])
def test_shapes_that_every_family_takes(shown, size):
    assert bool(shown(picture(*size)).isfinite().all())


def test_a_ribbon_is_refused_where_it_would_fill_the_memory():
    processor = BUILDERS["llava"][1]()
    length = MAX_PIXELS // 56**2 + 1
    with pytest.raises(BadInput, match=rf"too long for its width: {length} x 1 pixels, whose shorter side becomes 56"):
        to_inputs(processor, [ask(Image.new("RGB", (length, 1)))], None)


def test_the_digests_tell_apart_what_is_shown_differently():
    variants = [PLAIN, *(Image.new("P", (4, 4)) for _ in "a")]
    for orientation in TURNS:
        variants.append(PLAIN.copy())
        exif = Image.Exif()
        exif[0x0112] = orientation
        variants[-1].info["exif"] = exif.tobytes()
    grey = PLAIN.convert("L")
    for key in (None, 3, 4):
        variants.append(grey.copy())
        variants[-1].info |= {} if key is None else {"transparency": key}
    for digest in (messages_digest, visual_digest):
        assert len({digest(ask(image)) for image in variants}) == len(variants)


SEEDS = [
    data(PLAIN, "PNG", **turned(6)[1]),
    data(PLAIN, "JPEG", **turned(8)[1]),
    data(PLAIN, "WEBP", **turned(3)[1]),
    data(PLAIN.quantize(8), "GIF", transparency=3),
    data(PLAIN, "BMP"),
    data(Image.fromarray(RAMP), "PNG"),
    data(PLAIN.convert("CMYK"), "JPEG"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow
@pytest.mark.parametrize("seed", range(10))
def test_damaged_bytes_become_a_picture_or_a_reason(seed, tmp_path):
    luck = random.Random(seed)
    file = tmp_path / "damaged"
    for _ in range(40):
        damaged = bytearray(luck.choice(SEEDS))
        for _ in range(luck.randint(1, 6)):
            damaged[luck.randrange(min(len(damaged), luck.choice([200, 10**6])))] = luck.randrange(256)
        file.write_bytes(damaged[: luck.choice([len(damaged), luck.randrange(len(damaged))])])
        with suppress(BadInput):
            assert as_rgb(str(file)).mode == "RGB"
