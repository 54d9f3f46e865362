"""What a command says to programs: the JSON of its last line, and of the file that a long one names."""

import json
from pathlib import Path
from typing import Any


def report_of(out: str, folder: Path = Path()) -> dict[str, Any]:
    """Return the whole object; a path in it is relative to `folder`."""
    line = json.loads(out.splitlines()[-1])
    return line | (json.loads((folder / line["json"]).read_text()) if "json" in line else {})
