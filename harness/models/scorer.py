"""The VisionSelector scorer (arXiv 2510.16598), and reading it from whatever folder or checkpoint it came in."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

INIT_SCALE = 1e-4  # standard deviation of the initial weights in the released code
ARCHITECTURE = "TransformerScorer"
PARTS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SCORER_FOLDER = "scorer"  # beside the weights of a model that brings its own


class VisionSelectorScorer(nn.Module):
    """Importance of a visual token: the mean score of its query against the keys of all of them.

    q = X Wq' + bq, k = X Wk' + bk, score_i = mean_j q_i . k_j / sqrt(h). The mean moves into the key, and the query's
    projection too, so that the score is linear in the token and no [N, N] or [N, h] tensor is needed:

        kbar = Wk mean(X) + bk,  a = Wq' kbar / sqrt(h),  c = bq . kbar / sqrt(h),  score = X a + c

    Computed in float32 whatever the type of the tokens.
    """

    def __init__(self, in_features: int, hidden_dim: int, init_scale: float = INIT_SCALE) -> None:
        super().__init__()
        self.in_features = in_features
        self.hidden_dim = hidden_dim
        self.init_scale = init_scale
        self.q_proj = nn.Linear(in_features, hidden_dim)
        self.k_proj = nn.Linear(in_features, hidden_dim)
        for layer in (self.q_proj, self.k_proj):
            nn.init.normal_(layer.weight, std=init_scale)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Score the visual tokens `x` [N, D] of one sample -> logits [N]."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            key = self.k_proj.weight.float() @ x.mean(0) + self.k_proj.bias.float()
            key = key / self.hidden_dim**0.5
            return x @ (key @ self.q_proj.weight.float()) + self.q_proj.bias.float() @ key


def score_in_place(scorer: nn.Module, features: Tensor) -> Tensor:
    """Score `features` [N, D] -> [N] with a module that is not ours to move."""
    device = next((tensor.device for tensor in chain(scorer.parameters(), scorer.buffers())), features.device)
    if device != features.device:
        here = features.device
        raise ValueError(f"the scorer is on {device}, the visual tokens on {here}: pass scorer.to('{here}')")
    scores: Tensor = scorer(features)
    return scores


def save_scorer(module: VisionSelectorScorer, folder: str | Path) -> None:
    """Write `module` in the layout of the released selectors: config.json and model.safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "in_features": module.in_features,
        "hidden_dim": module.hidden_dim,
        "init_scale": module.init_scale,
        "architecture": ARCHITECTURE,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: module.get_parameter(name).detach().float().cpu().contiguous() for name in PARTS}
    save_file(tensors, folder / "model.safetensors")


def load_scorer(path: str | Path, dim: int) -> VisionSelectorScorer:
    """Read the scorer for visual tokens of width `dim` from a file, a scorer's folder or a whole checkpoint.

    Its four tensors are found by the end of their names, whatever stands in front, and by the width if there are
    several such groups; only they are read. No code that lies in the folder is executed.
    """
    path = Path(path).expanduser()
    names, unreadable = _tensor_files(path)
    found = _find(path, names, unreadable, dim)
    tensors = _read({part: (names[name], name) for part, name in found.items()})
    h, d = _shapes(path, tensors)
    if d != dim:
        raise ValueError(f"the scorer in {path} is for tokens of width {d}, this model's have {dim}: pass another")
    scorer = VisionSelectorScorer(d, h)
    scorer.load_state_dict({part: tensor.float() for part, tensor in tensors.items()})
    return scorer.requires_grad_(False).eval()


def shipped_scorer(name_or_path: str) -> Path | None:
    """Return where the scorer lies that came with a model's weights: a folder `scorer`, or tensors among them."""
    folder = _local_folder(name_or_path)
    if folder is None:
        return None
    if (folder / SCORER_FOLDER).is_dir():
        return folder / SCORER_FOLDER
    has_weights = any(True for suffix in SUFFIXES[:2] for _ in folder.glob(f"*{suffix}"))
    return folder if has_weights and any(_is_scorer(name) for name in _tensor_files(folder)[0]) else None


def _local_folder(name_or_path: str) -> Path | None:
    if not name_or_path:
        return None
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name_or_path, "config.json")
    except HFValidationError:  # a path that has moved since
        return None
    return Path(config).parent if isinstance(config, str) else None


def _is_scorer(name: str) -> bool:
    return "importance_scorer." in name


def _tensor_files(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Return {name of tensor: file that holds it}, and what is wrong with files that cannot be read."""
    if not path.exists():
        raise ValueError(f"no scorer at {path}: pass a file or folder that exists")
    if path.is_file():
        return _names_in(path), []
    for index in sorted(path.glob("*.index.json")):
        if weight_map := _weight_map(index):
            return {name: path / file for name, file in weight_map.items()}, []
    names: dict[str, Path] = {}
    unreadable = []
    for suffix in SUFFIXES:
        for file in sorted(path.glob(f"*{suffix}")):
            try:
                names |= _names_in(file)
            except ValueError as error:  # such as training_args.bin beside the weights
                unreadable.append(str(error))
        if names:
            break
    if not names and not unreadable:
        raise ValueError(f"no scorer in {path}: the folder has no {' or '.join(SUFFIXES)} file")
    return names, unreadable


def _weight_map(index: Path) -> dict[str, str]:
    try:
        loaded = json.loads(index.read_text())
    except ValueError as error:
        raise ValueError(f"{index} is damaged, it is no JSON ({error}): copy it again") from error
    found = loaded.get("weight_map") if isinstance(loaded, dict) else None
    return found if isinstance(found, dict) else {}


def _names_in(file: Path) -> dict[str, Path]:
    if file.suffix != ".safetensors":
        return dict.fromkeys(_unpickled(file), file)
    try:
        with safe_open(file, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"scorer file {file} cannot be read: {error}") from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    if file.suffix not in SUFFIXES:
        raise ValueError(f"scorer file {file} is not one of {', '.join(SUFFIXES)}")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"scorer file {file} cannot be read as plain tensors: {first_line}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"scorer file {file} holds a {type(loaded).__name__}, not named tensors")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _find(path: Path, names: Mapping[str, Path], unreadable: Sequence[str], dim: int) -> dict[str, str]:
    """Return {part: full name} of the one group of names that has the four parts under one prefix."""
    groups = _groups(names)
    whole = {prefix: group for prefix, group in groups.items() if len(group) == len(PARTS)}
    if len(whole) == 1:
        return whole.popitem()[1]
    if whole:
        fitting = [group for group in whole.values() if _width(names, group) == dim]
        if len(fitting) == 1:
            return fitting[0]
        listed = ", ".join(f"'{prefix}'" for prefix in sorted(whole))
        count = f"{len(fitting) or 'none'} of width {dim}"
        raise ValueError(f"{path} holds more than one scorer, under {listed}, {count}: pass a folder with one of them")
    also = "".join(f"; {problem}" for problem in unreadable)
    if groups:
        prefix, group = max(groups.items(), key=lambda item: len(item[1]))
        missing = ", ".join(f"{prefix}{part}" for part in PARTS if part not in group)
        raise ValueError(f"the scorer in {path} is incomplete: {missing} is missing{also}")
    raise ValueError(f"no scorer in {path}: expected tensors {', '.join(PARTS)} under one prefix, found none{also}")


def _groups(names: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Return {prefix: {part: full name}} of what may be a scorer."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        for part in PARTS:
            if name == part or name.endswith(f".{part}"):
                groups.setdefault(name[: -len(part)], {})[part] = name
    # An attention layer has the same four, and a value projection beside them.
    groups = {prefix: group for prefix, group in groups.items() if f"{prefix}v_proj.weight" not in names}
    marked = {prefix: group for prefix, group in groups.items() if "scorer" in prefix}
    return marked or groups


def _width(names: Mapping[str, Path], group: Mapping[str, str]) -> int | None:
    """Return the last dimension of the query projection of a `group`."""
    part = "q_proj.weight"
    shape = _read({part: (names[group[part]], group[part])})[part].shape
    return shape[-1] if shape else None


def _read(where: Mapping[str, tuple[Path, str]]) -> dict[str, Tensor]:
    """Read {part: (file, name)}; shards of a large checkpoint are not loaded whole where the format allows it."""
    tensors = {}
    for file in {file for file, _ in where.values()}:
        wanted = {part: name for part, (holder, name) in where.items() if holder == file}
        if not file.is_file():
            raise ValueError(f"{file} is missing, which holds {', '.join(sorted(wanted.values()))}: copy it there")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as shard:
                    tensors.update({part: shard.get_tensor(name) for part, name in wanted.items()})
            except (SafetensorError, OSError) as error:
                raise ValueError(f"scorer file {file} cannot be read: {error}") from error
        else:
            loaded = _unpickled(file)
            gone = ", ".join(name for name in wanted.values() if name not in loaded)
            if gone:
                raise ValueError(f"{file} lacks {gone}, which the index promises")
            tensors.update({part: loaded[name] for part, name in wanted.items()})
    return tensors


def _shapes(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return (h, D) after checking that the four tensors fit each other."""
    shapes = {part: tuple(tensor.shape) for part, tensor in tensors.items()}
    weight = shapes["q_proj.weight"]
    h = weight[0] if weight else 0
    expected = {"q_proj.weight": weight, "q_proj.bias": (h,), "k_proj.weight": weight, "k_proj.bias": (h,)}
    if len(weight) != 2 or shapes != expected:
        listed = ", ".join(f"{part} {list(shapes[part])}" for part in PARTS)
        raise ValueError(f"the scorer in {path} has shapes that do not fit: {listed}; expected [h, D] and [h] twice")
    return h, weight[1]
