"""Pictures as every family sees them: upright, three channels of 8 bits, white where they are transparent.

These are the rules of transformers' `load_image` and `convert_to_rgb`, wherever a picture comes from. Of an animation,
the first frame is shown, or the one that a task has chosen.
"""

import base64
import binascii
import errno
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

from harness.models.bad_input import BadInput, reading

WHITE = (255, 255, 255)
# EXIF orientation -> what makes a picture upright; `ImageOps.exif_transpose` fails where other EXIF entries are damaged
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
REMOTE = ("http://", "https://", "data:")
MAX_PIXELS = 178_956_970  # of a picture that a processor enlarges; as many as Pillow agrees to decode


def as_rgb(source: Any) -> Image.Image:
    """Return the picture in `source`, a PIL image, a file or a URL, in the form that models see.

    BadInput if it does not decode, has no pixels, or stores numbers whose range does not say which one is white.
    """
    with reading(binascii.Error):
        picture = source if isinstance(source, Image.Image) else _opened(source)
        picture.load()  # turns a TIFF upright
        if 0 in picture.size:
            raise BadInput(f"the picture has no pixels ({picture.width} x {picture.height})")
        turn = turn_of(picture)
        picture = _on_white(_eight_bits(picture))
    return picture if turn is None else picture.transpose(turn)


def turn_of(picture: Image.Image) -> Transpose | None:
    """Return what makes a picture upright by its EXIF data; None if it is upright, or if the data are damaged."""
    try:
        with reading():
            return TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except BadInput:
        return None  # the pixels may be whole; decoding will tell


def check_size_as_resized(picture: Image.Image, processor: Any) -> None:
    """Raise BadInput for a ribbon that a processor of fixed resolution would make enormous before it crops it."""
    side = getattr(processor.image_processor.size, "shortest_edge", None)
    if side and side * side * max(picture.size) // min(picture.size) > MAX_PIXELS:
        shape = f"{picture.width} x {picture.height} pixels"
        raise BadInput(f"the picture is too long for its width: {shape}, whose shorter side becomes {side}")


def check_size_as_padded(pictures: Iterable[Image.Image]) -> None:
    """Raise BadInput for a ribbon that a processor would pad to an enormous square before it resizes it."""
    for picture in pictures:
        if max(picture.size) ** 2 > MAX_PIXELS:
            shape = f"{picture.width} x {picture.height} pixels"
            raise BadInput(f"a picture among several is too long to be padded to a square: {shape}")


def _opened(source: Any) -> Image.Image:
    if not isinstance(source, str | Path) or not str(source):
        raise BadInput(f"the picture is {source!r:.40}: expected a PIL image, a file or a URL")
    address = str(source)
    if not address.startswith(REMOTE):
        return Image.open(existing(address))
    if address.startswith("data:"):
        return Image.open(BytesIO(base64.b64decode(address.partition("base64,")[2])))
    return Image.open(BytesIO(httpx.get(address, follow_redirects=True).raise_for_status().content))


def _on_white(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB, without its EXIF data; what is transparent becomes white."""
    if not picture.has_transparency_data:
        shown = picture.convert("RGB")
        shown.info = {}
        return shown
    picture = picture.convert("RGBA")
    background = Image.new("RGB", picture.size, WHITE)
    background.paste(picture, mask=picture.getchannel("A"))
    return background


def check_files(media: Iterable[Any]) -> None:
    """Raise FileNotFoundError if one of some pictures, videos and lists of frames is a file that is not there."""
    for item in media:
        for source in item if isinstance(item, list | tuple) else [item]:
            if isinstance(source, str) and source and not source.startswith(REMOTE):
                existing(source)


def existing(address: str) -> str:
    """Return the path of a picture or video; FileNotFoundError if it is not there: then a data set is not whole."""
    file = address.removeprefix("file://")
    if not Path(file).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
    return file


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return a picture of 16-bit grey by its high bytes; BadInput for integers and floats beyond 0 to 255."""
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        grey = (values >> 8).astype(np.uint8)
        grey[values == picture.info.get("transparency", -1)] = 255  # the colour that a PNG declares transparent
        return Image.fromarray(grey)
    if picture.mode in ("I", "F"):
        values = np.asarray(picture)
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= 255 or (picture.mode == "F" and 0 < high <= 1):
            kind = "integers" if picture.mode == "I" else "floats"
            raise BadInput(f"the pixels are {kind} from {low:g} to {high:g}, without a known white: store 8 bits")
    return picture
