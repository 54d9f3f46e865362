"""The VisionSelector scorer (arXiv 2510.16598): the module, saving it, and loading it from a file or checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.core.files import json_line
from harness.models.checkpoint import cached_folder

INIT_SCALE = 1e-4  # standard deviation of the initial weights in the released code
ARCHITECTURE = "TransformerScorer"
PARTS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SCORER_FOLDER = "scorer"  # next to the weights of a model with its own scorer


class VisionSelectorScorer(nn.Module):
    """Scorer of visual tokens: the importance of a token is the mean score of its query against the keys of all.

    q = X Wq' + bq, k = X Wk' + bk, score_i = mean_j q_i . k_j / sqrt(h). The mean can be taken over the keys first, and
    the query's projection applied to it. The score is then linear in the token, without [N, N] or [N, h] tensors:

        kbar = Wk mean(X) + bk,  a = Wq' kbar / sqrt(h),  c = bq . kbar / sqrt(h),  score = X a + c

    It is computed in float32 for tokens of any type.
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
    """Score `features` [N, D] -> [N] with the user's module, which is not moved to another device."""
    device = next((tensor.device for tensor in chain(scorer.parameters(), scorer.buffers())), features.device)
    if device != features.device:
        target = features.device
        raise ValueError(f"the scorer is on {device}, the visual tokens on {target}: pass scorer.to('{target}')")
    scores: Tensor = scorer(features)
    return scores


def save_scorer(module: VisionSelectorScorer, folder: str | Path) -> None:
    """Save `module` like the released scorers: config.json and model.safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "in_features": module.in_features,
        "hidden_dim": module.hidden_dim,
        "init_scale": module.init_scale,
        "architecture": ARCHITECTURE,
    }
    (folder / "config.json").write_text(json_line(config, indent=2) + "\n")
    tensors = {name: module.get_parameter(name).detach().float().cpu().contiguous() for name in PARTS}
    save_file(tensors, folder / "model.safetensors")


def load_scorer(path: str | Path, dim: int) -> VisionSelectorScorer:
    """Load the scorer for visual tokens of width `dim` from a file, a scorer's folder or a whole checkpoint.

    Its four tensors are found by the ends of their names, under any prefix, and by their width if several prefixes have
    them. Only these tensors are read. No code in the folder is executed.
    """
    path = Path(path).expanduser()
    names, unreadable = _tensor_files(path)
    full_names = _find_scorer(path, names, unreadable, dim)
    tensors = _read({part: (names[name], name) for part, name in full_names.items()})
    h, d = _shapes(path, tensors)
    if d != dim:
        raise ValueError(f"the scorer in {path} is for tokens of width {d}, this model's have {dim}: pass another")
    scorer = VisionSelectorScorer(d, h)
    scorer.load_state_dict({part: tensor.float() for part, tensor in tensors.items()})
    return scorer.requires_grad_(False).eval()


def shipped_scorer(name_or_path: str) -> Path | None:
    """Return the path of the scorer that is shipped with a model, or None: a folder `scorer`, or the weights."""
    local = Path(name_or_path).expanduser()
    folder = local if name_or_path and local.is_dir() else cached_folder(name_or_path)
    if folder is None:
        return None
    if (folder / SCORER_FOLDER).is_dir():
        return folder / SCORER_FOLDER
    has_weights = any(True for suffix in SUFFIXES[:2] for _ in folder.glob(f"*{suffix}"))
    return folder if has_weights and any(_is_scorer(name) for name in _tensor_files(folder)[0]) else None


def _is_scorer(name: str) -> bool:
    return "importance_scorer." in name


def _tensor_files(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Return {name of tensor: its file}, and the errors of files that cannot be read."""
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
            except ValueError as error:  # such as training_args.bin next to the weights
                unreadable.append(str(error))
        if names:
            break
    if not names and not unreadable:
        raise ValueError(f"no scorer in {path}: the folder has no {' or '.join(SUFFIXES)} file")
    return names, unreadable


def _weight_map(index: Path) -> dict[str, str]:
    try:
        loaded = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{index} is damaged, it is no JSON ({error}): copy it again") from error
    weight_map = loaded.get("weight_map") if isinstance(loaded, dict) else None
    if not isinstance(weight_map, dict):
        return {}  # of something else
    if wrong := next((name for name, file in weight_map.items() if not isinstance(file, str)), None):
        raise ValueError(f"{index} is damaged, it names no file for {wrong}: copy it again")
    return weight_map


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
        with warnings.catch_warnings(action="ignore"):  # about junk, too
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling junk raises anything, as KeyError, UnicodeDecodeError or struct.error
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"scorer file {file} cannot be read as plain tensors: {first_line or repr(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"scorer file {file} holds a {type(loaded).__name__}, not named tensors")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _find_scorer(path: Path, names: Mapping[str, Path], unreadable: Sequence[str], dim: int) -> dict[str, str]:
    """Return {part: full name} of the scorer's four tensors, which share a prefix; ValueError unless there is one."""
    groups = _groups(names)
    complete = {prefix: group for prefix, group in groups.items() if len(group) == len(PARTS)}
    if len(complete) == 1:
        return complete.popitem()[1]
    if complete:
        fitting = [group for group in complete.values() if _width(names, group) == dim]
        if len(fitting) == 1:
            return fitting[0]
        listed = ", ".join(f"'{prefix}'" for prefix in sorted(complete))
        count = f"{len(fitting) or 'none'} of width {dim}"
        raise ValueError(f"{path} holds more than one scorer, under {listed}, {count}: pass a folder with one of them")
    errors = "".join(f"; {error}" for error in unreadable)
    if groups:
        prefix, group = max(groups.items(), key=lambda item: len(item[1]))
        missing = ", ".join(f"{prefix}{part}" for part in PARTS if part not in group)
        raise ValueError(f"the scorer in {path} is incomplete: {missing} is missing{errors}")
    raise ValueError(f"no scorer in {path}: expected tensors {', '.join(PARTS)} under one prefix, found none{errors}")


def _groups(names: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Return {prefix: {part: full name}} of all groups of tensors that may be a scorer."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        for part in PARTS:
            if name == part or name.endswith(f".{part}"):
                groups.setdefault(name[: -len(part)], {})[part] = name
    # An attention layer has tensors of the same four names, but also a value projection.
    groups = {prefix: group for prefix, group in groups.items() if f"{prefix}v_proj.weight" not in names}
    named_scorer = {prefix: group for prefix, group in groups.items() if "scorer" in prefix}
    return named_scorer or groups


def _width(names: Mapping[str, Path], group: Mapping[str, str]) -> int | None:
    """Return the last dimension of the query projection of a `group`."""
    part = "q_proj.weight"
    shape = _read({part: (names[group[part]], group[part])})[part].shape
    return shape[-1] if shape else None


def _read(sources: Mapping[str, tuple[Path, str]]) -> dict[str, Tensor]:
    """Read the tensors {part: (file, name)}; of safetensors files, only these tensors are read."""
    tensors = {}
    for file in {file for file, _ in sources.values()}:
        names = {part: name for part, (source, name) in sources.items() if source == file}
        if not file.is_file():
            raise ValueError(f"{file} is missing, which holds {', '.join(sorted(names.values()))}: copy it there")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as shard:
                    tensors.update({part: shard.get_tensor(name) for part, name in names.items()})
            except (SafetensorError, OSError) as error:
                raise ValueError(f"scorer file {file} cannot be read: {error}") from error
        else:
            loaded = _unpickled(file)
            missing = ", ".join(name for name in names.values() if name not in loaded)
            if missing:
                raise ValueError(f"{file} lacks {missing}, which the index promises")
            tensors.update({part: loaded[name] for part, name in names.items()})
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
