"""Locate a model's files (a local folder, the package, the Hugging Face Hub) and check that they are complete."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from harness.core.config import SHIPPED, ModelConfig, shipped
from harness.core.errors import UserError, as_user_error, one_line
from harness.models import quantised

HUB_TIMEOUT = 1.2  # seconds; errors in a configuration are reported within 2. HF_HUB_ETAG_TIMEOUT overrides it
USE_LOCAL = "point to a local folder: model.pretrained=/path"
WHOLE_HASH = 64 << 20  # bytes; of larger files, the size and some blocks are hashed
BLOCKS, BLOCK = 64, 256 << 10  # number of blocks, bytes of each
COMPANIONS = ("scorer", "d2prior.safetensors")  # files of methods in a model's folder
DOWNLOADS = ".cache"  # what huggingface_hub notes in a folder that it has filled; no part of the model
DECODER, TOWER = "decoder.safetensors", "tower.safetensors"  # the weights of a packed folder (`packed.py`)
NEEDED = (
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer_config.json",),
    ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),  # without one, transformers makes up a tokenizer
)
_HASHED_SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".jinja", ".model", ".pt", ".pth"}


def check(model: ModelConfig) -> Path | None:
    """Return the local folder of a model, or None if the Hub has it; UserError if neither."""
    folder = local_folder(model)
    if folder is None:
        _check_hub(model.pretrained, model.revision)
    return folder


def local_folder(model: ModelConfig) -> Path | None:
    """Return the local folder of a model, or None if it has to be downloaded; UserError if the folder is incomplete."""
    name = model.pretrained
    folder = shipped(name)
    if name.startswith((SHIPPED, "/", ".", "~")) or folder.exists() or not is_hub_id(name):
        check_folder(folder)
        check_weights(folder, model.dtype)
        return folder
    cached = cached_folder(name, model.revision)
    if cached is None:
        return None
    try:
        check_folder(cached)
    except UserError:
        return None  # an interrupted download, which the Hub has to complete
    check_weights(cached, model.dtype)
    return cached


def cached_folder(repo: str, revision: str | None = None) -> Path | None:
    """Return the folder in the Hub's cache with a model's config.json, maybe without weights; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision) if is_hub_id(repo) else None
    return Path(config).parent if isinstance(config, str) else None


def download(model: ModelConfig) -> Path:
    """Return the folder with a model's files; download them into the Hub's cache if needed."""
    folder = check(model)
    if folder is None:
        check_weights(_download(model.pretrained, model.revision, ["config.json"]), model.dtype)
        folder = _download(model.pretrained, model.revision)
        check_folder(folder)
    return folder


def weights_fingerprint(folder: Path) -> str:
    """Return the digest of a model; companion files of methods are not part of it."""
    return fingerprint(folder, COMPANIONS)


def download_config(model: ModelConfig, companions: Iterable[str] = ()) -> Path:
    """Download config.json and those files of `companions` that the model has; return their folder."""
    folder = _download_file(model.pretrained, model.revision, "config.json").parent
    check_weights(folder, model.dtype)
    for name in companions:
        if _has(model.pretrained, model.revision, name):
            _download_file(model.pretrained, model.revision, name)
    return folder


def check_folder(folder: Path) -> None:
    """Raise UserError, which names the first file that is missing or truncated."""
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}: pass a Hub id or a local folder as model.pretrained=/path")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model folder: config.json is missing")
    for name in (
        "config.json",
        "generation_config.json",
    ):  # transformers ignores damage in the latter
        if (folder / name).is_file() and not isinstance(_json(folder / name), dict):
            raise UserError(f"{folder / name} is damaged, expected a JSON object: download it again")
    for names in NEEDED:
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{folder} lacks {' or '.join(names)}: save the processor next to the weights")
    for shard in _shards(folder):
        _check_safetensors(shard)


def is_packed(folder: Path) -> bool:
    """Tell whether the weights in a folder are those of `harness/models/packed.py`."""
    return (folder / TOWER).is_file() and not (folder / "model.safetensors").exists()


def fingerprint(path: Path, skip: Collection[str] = ()) -> str:
    """Return a digest of a model's or scorer's files, which is independent of their folder's name.

    Files and sub-folders named in `skip` are left out.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        relative = file.relative_to(path) if file != path else Path(file.name)
        if file.suffix in _HASHED_SUFFIXES and relative.parts[0] not in (*skip, DOWNLOADS):
            digest.update(f"{relative}\0{file.stat().st_size}\0{content_digest(file)}\0".encode())
    return digest.hexdigest()[:16]


def content_digest(file: Path) -> str:
    """Return a digest of one file: of all of it, or of its size and `BLOCKS` evenly spaced blocks if it is large."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE_HASH:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for block in range(BLOCKS):
            stream.seek((size - BLOCK) * block // (BLOCKS - 1))
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def check_weights(folder: Path, dtype: str) -> None:
    """Raise UserError if config.json names a quantisation that cannot be loaded here; the weights may not be there."""
    if (folder / "config.json").is_file():
        quantised.check(_json(folder / "config.json"), folder, dtype)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON (a Git LFS pointer?): download it again") from error


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted({folder / name for name in _json(index)["weight_map"].values()})
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{index} has no weight_map of tensors to files: download it again") from error
    elif is_packed(folder):
        shards = [folder / DECODER, folder / TOWER]
    else:
        shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise UserError(f"no weight file in {folder}: expected model.safetensors or its shards with an index")
    for shard in shards:
        if not os.path.isfile(shard):  # False also for a name that no file system takes
            raise UserError(f"missing weight file {str(shard)[:300]}: copy it there or download again")
    return shards


def _check_safetensors(path: Path) -> None:
    remedy = "is it cut short, or a Git LFS pointer? download it again"
    with as_user_error(SafetensorError, f"weight file {path} cannot be read", remedy), safe_open(path, framework="np"):
        pass  # opening checks the header, and that the file has the length that the header implies


def is_hub_id(name: str) -> bool:
    """Tell whether a name is that of a repository: owner/name, without what such names cannot have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:  # a mistyped path
        return False
    return "/" in name


def _check_hub(repo: str, revision: str | None) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(f"cannot reach the Hub for {repo} (HF_HUB_OFFLINE is set), nor is it cached; {USE_LOCAL}")
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_TIMEOUT)

    def ask() -> None:
        from huggingface_hub import HfApi

        HfApi().model_info(repo, revision=revision, timeout=seconds)

    error = run_with_timeout(seconds, ask)
    if error is not None:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if isinstance(error, GatedRepoError | RepositoryNotFoundError | RevisionNotFoundError):
            raise UserError(f"the Hub has no accessible {repo} ({one_line(error)[:80]}); {USE_LOCAL}")
        error_type = type(error).__name__
        hint = "; HF_HUB_ETAG_TIMEOUT=10 waits longer" if "Timeout" in error_type else ""
        raise UserError(f"cannot reach the Hub for {repo} ({error_type}{hint}), nor is it cached; {USE_LOCAL}")


def _download(repo: str, revision: str | None, only: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download

    with _downloading(repo):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=only))


def _download_file(repo: str, revision: str | None, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _downloading(repo):
        return Path(hf_hub_download(repo, name, revision=revision))


def _has(repo: str, revision: str | None, name: str) -> bool:
    from huggingface_hub import HfApi

    with _downloading(repo):
        return HfApi().file_exists(repo, name, revision=revision)


def _downloading(repo: str) -> AbstractContextManager[None]:
    remedy = f"a gated model needs its licence accepted and HF_TOKEN; or {USE_LOCAL}"
    return as_user_error(Exception, f"cannot download {repo} from the Hub", remedy)


def run_with_timeout(seconds: float, call: Callable[[], Any]) -> BaseException | None:
    """Return the error of `call`, TimeoutError if it takes longer, None if it succeeds.

    It runs in a thread because the look-up of a host name has no timeout of its own.
    """
    outcome: list[BaseException | None] = [TimeoutError()]

    def run() -> None:
        try:
            call()
            outcome[0] = None
        except Exception as error:  # returned to the caller, who decides
            outcome[0] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0]
