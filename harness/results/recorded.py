"""JSON objects of finished runs that say which file lacks a key, instead of a KeyError."""

from typing import Any

from harness.core.errors import UserError


class Recorded(dict[str, Any]):
    """A JSON object in `file`, where its place has the dotted `name`; objects in it are of this class, too."""

    def __init__(self, content: dict[str, Any], file: str, name: str = "") -> None:
        self.file, self.name = file, name
        inner = {key: f"{name}.{key}".removeprefix(".") for key in content}
        super().__init__(
            {key: Recorded(v, file, inner[key]) if isinstance(v, dict) else v for key, v in content.items()}
        )

    def __missing__(self, key: str) -> Any:
        name = f"{self.name}.{key}".removeprefix(".")
        raise UserError(f"{self.file} is damaged, it lacks {name}: move the run away and start it again")
