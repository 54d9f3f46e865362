"""From configuration to a loaded model and a ready pruner."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import harness
import methods
from harness.core.config import ModelConfig, RunConfig, shipped
from harness.core.distributed import launched, only_one
from harness.core.errors import UserError, one_line
from harness.evaluation.resize_baseline import resizing
from harness.models import adapter_class, checkpoint, make_known
from harness.models.adapter import Adapter
from harness.models.llava_vision import loading_options
from harness.models.llavaov15 import MODEL_TYPE as LLAVA_OV15
from harness.models.preprocessing import limits_of
from harness.models.scorer import load_scorer, shipped_scorer
from harness.pruning.vision_cache import SharedVision
from harness.results.run_folder import slug
from methods.base import Method, Signal
from methods.budget import Budget


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
