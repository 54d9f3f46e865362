"""Checkpoints whose vision tower is stored in int8: two files in place of model.safetensors.

decoder.safetensors holds the projector and the language model by the names of `save_pretrained`, tower.safetensors the
tower by its own names (`harness/models/int8.py`). All else is as in any folder. transformers refuses such a folder,
because it finds no weights in it; `from_packed` does what its `from_pretrained` does elsewhere, and writes nothing:

    model = from_packed(harness.pocket.PHOTO_WEIGHTS)

`model.save_pretrained(FOLDER)` makes a folder that transformers reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from torch import Tensor

from harness.models.checkpoint import DECODER, TOWER
from harness.models.int8 import dequantised
from harness.models.model_folder import config_in

PREFIX = "vision_tower."  # of the tower's names in a checkpoint


def packed_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a packed folder as a checkpoint names them, those of the tower in float32."""
    tower = dequantised(load_file(folder / TOWER))
    return load_file(folder / DECODER) | {PREFIX + name: tensor for name, tensor in tower.items()}


def from_packed(folder: str | Path, **arguments: Any) -> Any:
    """Load a model from a packed folder; `arguments` are those of `from_pretrained`, and so is what is returned."""
    folder = Path(folder)
    config = config_in(folder)
    model_class: Any = transformers.AutoModelForImageTextToText._model_mapping[type(config)]
    loaded = model_class.from_pretrained(None, config=config, state_dict=packed_tensors(folder), **arguments)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.config.name_or_path = model.name_or_path = str(folder)  # where companion files are looked for
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return loaded
