"""The words of `pocket_photo`: things and their emoji, colours, places, words on signs, the words of its questions."""

from __future__ import annotations

GROUPS = {
    "animals": {
        "dog": "1f415", "cat": "1f408", "horse": "1f40e", "cow": "1f404", "pig": "1f416", "elephant": "1f418",
        "rabbit": "1f407", "rooster": "1f413", "penguin": "1f427", "turtle": "1f422", "fish": "1f41f",
        "octopus": "1f419", "butterfly": "1f98b", "snail": "1f40c",
    },
    "food": {
        "apple": "1f34e", "banana": "1f34c", "grapes": "1f347", "strawberry": "1f353", "pizza": "1f355",
        "burger": "1f354", "cake": "1f370", "mushroom": "1f344",
    },
    "vehicles": {"car": "1f697", "bus": "1f68c", "bicycle": "1f6b2", "airplane": "2708-fe0f", "boat": "26f5"},
    "plants": {"cactus": "1f335", "sunflower": "1f33b"},
    "objects": {
        "guitar": "1f3b8", "ball": "26bd", "umbrella": "2602-fe0f", "clock": "23f0", "key": "1f511", "hat": "1f3a9",
        "shoe": "1f45f", "robot": "1f916", "book": "1f4d5", "camera": "1f4f7", "chair": "1fa91",
    },
}  # fmt: skip
CODES = {name: code for group in GROUPS.values() for name, code in group.items()}  # of the Unicode emoji
THINGS = tuple(CODES)
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
COLORS = {
    "red": (225, 45, 40), "yellow": (245, 205, 40), "green": (60, 165, 70), "blue": (55, 105, 225),
    "purple": (150, 70, 190), "white": (250, 250, 250),
}  # fmt: skip
PAINTED = ("car", "bus", "guitar", "umbrella", "key", "hat", "shoe", "robot", "book", "camera", "chair")
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
SIDES = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
NUMBERS = ("one", "two", "three", "four")
SIGNS = (
    "BUS", "EXIT", "OPEN", "STOP", "TAXI", "SALE", "FREE", "NEWS", "MENU", "CAFE", "HOTEL", "BANK", "PARK", "SHOP",
    "ZOO", "GYM", "PUB", "SPA", "BEACH", "MUSIC",
)  # fmt: skip
LETTERS = tuple(sorted(set("".join(SIGNS))))
ASKING = "Is there any How many times does the appear Where is What at of color sign say yes no user assistant"
