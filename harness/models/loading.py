"""Load a model and its processor for inference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from harness.core.config import ModelConfig
from harness.core.distributed import launched, only_one
from harness.core.errors import UserError, as_user_error
from harness.models import checkpoint, make_known
from harness.models.llava import loading_options
from harness.models.llavaov15 import MODEL_TYPE as LLAVA_OV15
from harness.models.preprocessing import limits_of


@dataclass(frozen=True)
class Loaded:
    """A model in memory with its processor."""

    model: Any
    processor: Any
    config: ModelConfig
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs; parameters of one that is spread over several may lie elsewhere."""
        places = list(getattr(self.model, "hf_device_map", {}).values())
        if not places:
            return torch.device(self.model.device)
        return torch.device(next((place for place in places if place not in ("cpu", "disk")), "cpu"))


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


def load(config: ModelConfig, folder: Path | None = None) -> Loaded:
    """Load a checkpoint for inference; UserError if a tensor is missing or misshapen: transformers fills in noise.

    `folder` is where `checkpoint.download` has put its files, which is asked if it is None.
    """
    if folder is None:
        folder = checkpoint.download(config)
    device = device_of(config)
    with as_user_error(Exception, f"cannot read {folder / 'config.json'}"):
        family = make_known(folder)
    if config.unpack is not None and family != LLAVA_OV15:
        raise UserError(f"model.unpack={config.unpack} is for LLaVA-OneVision-1.5 alone, {folder} has a {family}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from_pretrained: Any = transformers.AutoModelForImageTextToText.from_pretrained
    with as_user_error(Exception, f"cannot load the processor in {folder}"):
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    with as_user_error(Exception, f"the processor in {folder} cannot write a prompt (is chat_template.jinja there?)"):
        processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    check_processor(processor, config, folder)
    spread = {} if config.device_map is None else {"device_map": config.device_map}
    with as_user_error(Exception, f"cannot load the model in {folder}"):
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
    with as_user_error(ValueError):
        limits_of(processor, config)
    counts = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")  # of LlavaProcessor
    lacking = [name for name in counts if getattr(processor, name, 0) is None]
    if lacking:
        raise UserError(f"the processor in {folder} lacks {', '.join(lacking)}: set them in its processor_config.json")
