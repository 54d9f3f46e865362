"""Photographs and emoji from packages that anybody can fetch; `scripts/photo_assets.sh` unpacks them into one folder.

Everything is under a permissive licence (docs/photo.md has them file by file). Photographs that show one of the things
asked about, or a person of whom the licence says nothing, are left out.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from harness.core.errors import UserError
from harness.pocket.photo.words import CODES

FOLDER = "HARNESS_PHOTO_ASSETS"  # the environment variable that names the folder
OPENCV, SKIMAGE, LOMIRI, SKLEARN = (
    "opencv/usr/share/doc/opencv-doc/examples",
    "skimage/skimage/data",
    "lomiri-wallpapers-16.04/usr/share/backgrounds",
    "sklearn/sklearn/datasets/images",
)
TRAINING = {
    f"{OPENCV}/data": (
        "aero1.jpg aero3.jpg aloeL.jpg baboon.jpg blox.jpg board.jpg box_in_scene.png building.jpg cards.png graf1.png "
        "home.jpg imageTextR.png left05.jpg leuvenA.jpg pca_test1.jpg rubberwhale1.png smarties.png squirrel_cls.jpg "
        "starry_night.jpg stuff.jpg sudoku.png text_defocus.jpg text_motion.jpg"
    ),
    f"{OPENCV}/alphamat/input_images": "plant.jpg",
    SKIMAGE: "astronaut.png coins.png grass.png gravel.png ihc.png moon.png motorcycle_left.png page.png retina.jpg",
}
TESTING = {  # parts of these ship with the suite: public domain, CC0 or CC BY
    SKIMAGE: "brick.png coffee.png hubble_deep_field.jpg rocket.jpg",
    LOMIRI: (
        "Picture_0B_by_freespace.jpg Picture_1A_by_freespace.jpg aitzgorri_by_Aitzol_Berasategi.jpg "
        "life_by_Aitzol_Berasategi.jpg picosdeeuropa_by_Aitzol_Berasategi.jpg seeding_by_Clements_Engelhardt.jpg "
        "sunset_by_Aitzol_Berasategi.jpg umang_by_Abhishek_Mudgal.jpg"
    ),
    SKLEARN: "china.jpg flower.jpg",
}
LARGEST = 1000  # pixels of the longer side of a photograph
STYLES = ("fluent", "twemoji")
UNSEEN_STYLE = "noto"  # in no picture of the training


def _file(name: str) -> Path:
    """Return a file of the unpacked packages; UserError without them."""
    folder = os.environ.get(FOLDER, "")
    path = Path(folder) / name
    if not folder or not path.is_file():
        raise UserError(f"{name} is not in {FOLDER}={folder or '(unset)'}: run scripts/photo_assets.sh FOLDER first")
    return path


@cache
def photographs(test: bool) -> tuple[Image.Image, ...]:
    """Return the photographs of the training or of the test."""
    pictures = []
    for folder, names in (TESTING if test else TRAINING).items():
        for name in names.split():
            picture = Image.open(_file(f"{folder}/{name}")).convert("RGB")
            picture.thumbnail((LARGEST, LARGEST))
            pictures.append(picture)
    return tuple(pictures)


@cache
def emoji(style: str, code: str) -> Image.Image:
    """Return an emoji [h, w] with transparency, cut to what shows."""
    if style == "noto":
        font = ImageFont.truetype(str(_file("noto/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")), 109)
        picture = Image.new("RGBA", (136, 128))
        text = "".join(chr(int(part, 16)) for part in code.split("-"))
        ImageDraw.Draw(picture).text((0, 0), text, font=font, embedded_color=True)
    else:
        place = {
            "fluent": f"fluent/package/assets/{code}.webp",
            "twemoji": f"twitter/package/img/twitter/64/{code}.png",
        }
        picture = Image.open(_file(place[style])).convert("RGBA")
    return picture.crop(picture.getchannel("A").point(lambda value: 255 * (value > 20)).getbbox())


@cache
def clutter(test: bool) -> tuple[str, ...]:
    """Return the emoji that nobody asks about; those of the test are not in training."""
    ranges = ((0x1F37A, 0x1F3FF), (0x1F4A1, 0x1F52F), (0x1FA70, 0x1FAAF))
    codes = [f"{code:x}" for first, last in ranges for code in range(first, last + 1)]
    asked = set(CODES.values())
    folder = _file("fluent/package/assets/1f415.webp").parent
    shown = [code for code in codes if code not in asked and (folder / f"{code}.webp").is_file()]
    return tuple(code for i, code in enumerate(shown) if (i % 3 == 0) == test)


@cache
def font(unseen: bool, which: int, size: int) -> ImageFont.FreeTypeFont:
    """Return a font of matplotlib's: without serifs or of one width, else, unseen in training, with serifs."""
    import matplotlib

    names = ("DejaVuSerif-Bold",) if unseen else ("DejaVuSans-Bold", "DejaVuSansMono-Bold")
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    return ImageFont.truetype(str(folder / f"{names[which % len(names)]}.ttf"), size)
