"""From configuration to a loaded model and a ready pruner, and the identity under which their answers are stored."""

import inspect
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import OmegaConf

import harness
import methods
from harness import checkpoint
from harness.config import ModelConfig, RunConfig, shipped, validate
from harness.errors import UserError, one_line
from harness.inputs import limits_of
from harness.models import adapter_class, make_known
from harness.models.base import Adapter
from harness.models.llava_vision import loading_options
from harness.models.llavaov15 import MODEL_TYPE as LLAVA_OV15
from harness.models.scorer import load_scorer, shipped_scorer
from harness.models.shared import SharedVision
from harness.processes import launched, only_one
from harness.resize import resizing
from harness.store import digest, slug
from methods.base import Method, Signal
from methods.budget import Budget
from methods.kernels.paths import TRITON

# They can change an answer.
PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "lmms-eval", "qwen-vl-utils", "pillow")
VIDEO_READERS = ("torchcodec", "decord", "av")  # qwen-vl-utils takes what is installed
ENVIRONMENT = ("MODEL_SEQ_LEN", "FORCE_QWENVL_VIDEO_READER", TRITON)  # qwen-vl-utils and selection listen to these
HARNESS = Path(__file__).parent
METHODS = Path(methods.__file__).parent


@dataclass(frozen=True)
class Loaded:
    """A model in memory with its processor."""

    model: Any
    processor: Any
    config: ModelConfig
    folder: Path
    shared: SharedVision | None = None  # the vision passes that its runs have in common

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs; parameters of one that is spread over several may lie elsewhere."""
        places = list(getattr(self.model, "hf_device_map", {}).values())
        if not places:
            return torch.device(self.model.device)
        return torch.device(next((place for place in places if place not in ("cpu", "disk")), "cpu"))


@dataclass(frozen=True)
class Pruner:
    """A method with its budget, ready to be put on a model."""

    method: Method
    name: str
    budget: Budget
    scorer: Path | None = None
    seed: int = 0
    positions: str = "keep"

    @property
    def remark(self) -> str:
        """What results are labelled with beside the name: the files that parameters name, as "prior 1f0c3a9b"."""
        return ", ".join(f"{name} {about['digest'][:8]}" for name, about in self.method.made_from.items())

    @property
    def label(self) -> str:
        """`idpruner-0.25`, for folders and progress bars."""
        renumbered = [] if self.positions == "keep" else [self.positions]
        return "-".join([slug(self.name), *filter(None, [slug(self.remark)]), self.budget.label, *renumbered])

    def attach(self, model: Any, shared: SharedVision | None = None) -> AbstractContextManager[Any]:
        """The pruning context on `model`, which may share its vision passes with earlier and later ones."""
        if self.method.stage == "pixels":
            return resizing(model, self.budget, shared)
        return harness.prune(
            model,
            self.method,
            keep=self.budget.keep,
            tokens=self.budget.tokens,
            scorer=self.scorer,
            seed=self.seed,
            positions=self.positions,
            shared=shared,
        )


def pruner_of(run: RunConfig, folder: Path) -> Pruner:
    """The method, checked, and its scorer found and read; UserError for what is wrong or missing."""
    method, scorer = checked_method(run, folder), None
    try:
        _check_made_for(method, folder)
        if Signal.IMPORTANCE in method.needs:
            scorer = shipped(run.model.scorer) if run.model.scorer else shipped_scorer(str(folder))
            if scorer is None:
                raise UserError(f"{method.name} needs a learned scorer, {folder} has none: pass model.scorer=/path")
            check_scorer(scorer, folder)
    except ValueError as error:
        raise UserError(one_line(error)) from error
    return Pruner(method, run.method["name"], run.budget, scorer, run.seed if run.pruned else 0, _positions(run))


def checked_method(run: RunConfig, folder: Path) -> Method:
    """The method with its parameters, which leave nothing open and which the model can run; UserError if not.

    Nothing is loaded: of the model only config.json is read, and the files of `left_beside` where they are there.
    """
    try:
        beside = {parameter: folder / file for parameter, file in left_beside(run).items()}
        found = {parameter: str(path) for parameter, path in beside.items() if path.is_file()}
        method = methods.load(run.method["name"], **{**run.params, **found})
        method.check()
        config = config_in(folder)
        adapter = adapter_class(config.model_type, f"the model in {folder}")
        adapter.check(method, config)
        adapter.check_positions(_positions(run), method)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error
    return method


def left_beside(run: RunConfig) -> dict[str, str]:
    """The parameters that name a file where the run names none: parameter -> file that may lie beside the weights."""
    beside = methods.get(run.method["name"]).beside
    return {parameter: file for parameter, file in beside.items() if run.params.get(parameter) is None}


def _positions(run: RunConfig) -> str:
    return run.positions if run.pruned else "keep"


def _check_made_for(method: Method, folder: Path) -> None:
    """ValueError if a file that a parameter names was made with another model."""
    for name, about in method.made_from.items():
        if "model" in about and about["model"] != checkpoint.weights_fingerprint(folder):
            other = f"{about.get('name', 'another model')} ({about['model']})"
            raise ValueError(f"method.{name} was made with {other}, not with the model in {folder}: make it anew")


def family_of(folder: Path) -> type[Adapter]:
    """The adapter of the model in `folder`; of the model only config.json is read."""
    return adapter_class(config_in(folder).model_type, f"the model in {folder}")


def config_in(folder: Path) -> Any:
    """The model's configuration in `folder`, of which only config.json is read."""
    with _in_one_line(f"cannot read {folder / 'config.json'}"):
        make_known(folder)
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


def check_scorer(scorer: Path, folder: Path) -> None:
    """ValueError unless `scorer` is whole and fits the model in `folder`; of the model only config.json is read."""
    load_scorer(scorer, config_in(folder).get_text_config().hidden_size)


def device_of(model: ModelConfig) -> str:
    """`auto` resolved to what this machine has; of several processes each takes a GPU of its own."""
    gpus, processes = torch.cuda.device_count(), launched()
    if model.device_map is not None:
        only_one(f"a run with model.device_map={model.device_map}")
    if processes.count > 1 and gpus and model.device in ("auto", "cuda"):
        if processes.local >= gpus:
            raise UserError(f"more processes were launched on this machine than torch sees GPUs ({gpus}): one for each")
        return f"cuda:{processes.local}"
    if processes.count > 1 and model.device.startswith("cuda:"):
        raise UserError(
            f"model.device={model.device} for {processes.count} processes: leave it out, each takes its own"
        )
    if model.device == "auto":
        return "cuda" if gpus else "cpu"
    if model.device.startswith("cuda") and int(model.device.partition(":")[2] or 0) >= gpus:
        raise UserError(f"model.device={model.device}, but torch sees {gpus or 'no'} GPU(s): try model.device=auto")
    return model.device


def load(config: ModelConfig) -> Loaded:
    """Load a checkpoint for inference; UserError if a tensor is missing or misshapen: transformers fills in noise."""
    folder = checkpoint.fetch(config)
    device = device_of(config)
    with _in_one_line(f"cannot read {folder / 'config.json'}"):
        family = make_known(folder)
    if config.unpack is not None and family != LLAVA_OV15:
        raise UserError(f"model.unpack={config.unpack} is for LLaVA-OneVision-1.5 alone, {folder} has a {family}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from_pretrained: Any = transformers.AutoModelForImageTextToText.from_pretrained
    with _in_one_line(f"cannot load the processor in {folder}"):
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    with _in_one_line(f"the processor in {folder} cannot write a prompt (is chat_template.jinja there?)"):
        processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    check_processor(processor, config, folder)
    spread = {} if config.device_map is None else {"device_map": config.device_map}
    with _in_one_line(f"cannot load the model in {folder}"):
        model, info = from_pretrained(
            folder,
            trust_remote_code=False,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, where the tensor can be named
            **({} if config.unpack is None else {"unpack": config.unpack}),
            **(loading_options(transformers.LlavaForConditionalGeneration) if family == "llava" else {}),
            **spread,
        )
        model = model.eval() if spread else model.eval().to(device)
    missing, misshapen = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors of its architecture, the first is {missing[0]}")
    if misshapen:
        name, found, expected = misshapen[0]
        what = f"{name} is {list(found)}, expected {list(expected)}"
        raise UserError(f"{folder} has {len(misshapen)} tensors that do not fit its config.json, the first: {what}")
    return Loaded(model, processor, config, folder)


def check_processor(processor: Any, config: ModelConfig, folder: Path) -> None:
    """UserError for pixel limits that a processor does not resize by, and for one that cannot count visual tokens."""
    try:
        limits_of(processor, config)
    except ValueError as error:
        raise UserError(one_line(error)) from error
    counts = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")  # of LlavaProcessor
    lacking = [name for name in counts if getattr(processor, name, 0) is None]
    if lacking:
        raise UserError(f"the processor in {folder} lacks {', '.join(lacking)}: set them in its processor_config.json")


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Turn whatever transformers raises for a folder that is not as it expects into one UserError."""
    try:
        yield
    except Exception as error:
        message = one_line(error)[:300]  # some of them fill a page
        raise UserError(f"{what}: {type(error).__name__}: {message}") from error


class Identity:
    """Everything that can change an answer, as JSON; equal identities share one run folder."""

    def __init__(self, run: RunConfig, folder: Path):
        self.run = run
        self.folder = folder

    @cached_property
    def model(self) -> dict[str, Any]:
        """Weights by content, and how they are loaded and fed."""
        config = self.run.model
        gpus = range(torch.cuda.device_count()) if config.device_map else [device_of(config)]
        kinds = {torch.cuda.get_device_name(gpu) for gpu in gpus if gpu != "cpu"}
        flash = ("flash-attn",) if config.attn == "flash_attention_2" else ()
        settings = ("dtype", "attn", "min_pixels", "max_pixels", "max_frames", "batch_size", "unpack", "device_map")
        ours = ("loading.py", "prune.py", "inputs.py", "resize.py", "lmms_model.py")
        code = (*(HARNESS / name for name in ours), *HARNESS.glob("models/**/*.py"))
        return {
            "weights": checkpoint.weights_fingerprint(self.folder),
            # In half precision a greedy answer moves with the type of GPU.
            "device": ", ".join(sorted(kinds)) or "cpu",
            **{key: getattr(config, key) for key in settings},
            "code": _code(sorted(code)),
            "packages": {name: _version(name) for name in (*PACKAGES, *VIDEO_READERS, *flash)},
            "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        }

    def answers(self, pruner: Pruner) -> dict[str, Any]:
        """What an answer depends on, given the question."""
        method = pruner.method
        return {
            "model": self.model,
            "method": {"name": method.name, "code": _code(_sources(type(method))), "params": _params(method)},
            "contract": _code(_shared()),
            "budget": {"keep": pruner.budget.keep, "tokens": pruner.budget.tokens},
            "scorer": checkpoint.fingerprint(pruner.scorer) if pruner.scorer else None,
            "seed": pruner.seed,
            "positions": pruner.positions,
        }


def from_flat(arguments: dict[str, Any]) -> tuple[Loaded, Pruner, dict[str, Any]]:
    """What `PrunedModel` needs from flat `--model_args`, named as in conf/model and in the main command."""
    only_one("a run by lmms-eval's own command line")  # it would cut other batches
    names = {field.name for field in fields(ModelConfig)} - {"name"}
    params = {key.removeprefix("method_"): value for key, value in arguments.items() if key.startswith("method_")}
    tree: dict[str, Any] = {
        "method": {"name": arguments.pop("method", "none"), **params},
        "model": {"name": "model_args", **{key: value for key, value in arguments.items() if key in names}},
        "tasks": {"name": "lmms_eval", "metrics": {"any": None}},
    }
    rest = {key: value for key, value in arguments.items() if key not in names and not key.startswith("method_")}
    if tree["method"]["name"] == "none" and not {"keep", "tokens"} & rest.keys():
        rest["keep"] = 1.0
    run = validate(OmegaConf.create({**tree, **rest}))
    folder = checkpoint.fetch(run.model)
    pruner = pruner_of(run, folder)
    return load(run.model), pruner, Identity(run, folder).answers(pruner)


def _params(method: Method) -> dict[str, Any]:
    """A method's parameters as JSON gives them back, files by digest; what it computes from them is in its code."""
    found = {}
    for name in (field.name for field in fields(method) if field.init):
        value = method.made_from[name]["digest"] if name in method.made_from else getattr(method, name)
        try:
            found[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            kind = type(value).__name__
            plain = "numbers, text, true, false, null, or lists and mappings of them: its results are kept under it"
            raise UserError(f"{method.name}: {name} is of type {kind}, a parameter must be made of {plain}") from error
    return found


def _sources(method: type[Method]) -> list[Path]:
    """The files of a method and of the methods it is derived from."""
    classes = [cls for cls in method.__mro__ if cls.__module__ not in (Method.__module__, object.__module__)]
    return [Path(inspect.getsourcefile(cls) or "") for cls in classes]


def _shared() -> list[Path]:
    """The files of `methods` that belong to no single method; the registry decides no answer."""
    single = {address.partition(":")[0].rpartition(".")[2] for address in methods.BUILT_IN.values()} | {"__init__"}
    return sorted(path for path in METHODS.rglob("*.py") if path.parent != METHODS or path.stem not in single)


def _code(files: Iterable[Path]) -> str:
    return digest([path.read_text(encoding="utf-8") for path in files])[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
