"""The vocabulary of the pocket scenes: colours, shapes, keys of forms, characters."""

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 205, 40),
    "teal": (30, 150, 150),
    "black": (25, 25, 25),
    "gray": (135, 135, 135),
    "brown": (130, 80, 40),
}
SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "ring", "diamond", "arrow")
KEYS = ("TOTAL", "DATE", "TAX", "PRICE", "ORDER", "ROOM", "CODE", "PAGE", "WEIGHT", "PHONE")
CHARACTERS = "0123456789ACEHKLPT"
POSITIONS = tuple(f"<pos{i}>" for i in range(1, 6))  # index of a character within its string
ROLES = ("object", "bar", "highest", "lowest", "text")
OPTIONS = ("A", "B", "C", "D")
