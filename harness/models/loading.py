"""Load a model and its processor for inference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from harness.core.config import ModelConfig
from harness.core.distributed import launched, only_one
from harness.core.errors import UserError, as_user_error
from harness.core.files import from_json
from harness.models import checkpoint, generation, quantised, register_family
from harness.models.image_towers import key_mapping
from harness.models.limits import limits_of
from harness.models.llavaov15 import MODEL_TYPE as LLAVA_OV15
from harness.models.model_folder import config_in
from harness.models.packed import from_packed
from harness.models.threads import leave_busy_cores

# Families whose vision tower is one of `TOWERS`, of which some had one level more before transformers 5.6
WITH_TOWERS = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}


@dataclass(frozen=True)
class Loaded:
    """A model in memory with its processor."""

    model: Any
    processor: Any
    config: ModelConfig
    folder: Path

    @property
    def device(self) -> torch.device:
        """Device of the model's inputs; parameters of a model on several devices may be elsewhere."""
        devices = list(getattr(self.model, "hf_device_map", {}).values())
        if not devices:
            return torch.device(self.model.device)
        return torch.device(next((device for device in devices if device not in ("cpu", "disk")), "cpu"))


def device_of(model: ModelConfig) -> str:
    """Return the device to load a model on: `auto` is resolved, and each of several processes gets its own GPU."""
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
    """Load a checkpoint for inference.

    UserError if a tensor is missing or has a wrong shape, because transformers would fill in random numbers. `folder`
    is the result of `checkpoint.download`, which is called if it is None.
    """
    if folder is None:
        folder = checkpoint.download(config)
    device = device_of(config)
    with as_user_error(Exception, f"cannot read {folder / 'config.json'}"):
        family = register_family(folder)
    if config.unpack is not None and family != LLAVA_OV15:
        raise UserError(f"model.unpack={config.unpack} is for LLaVA-OneVision-1.5 alone, {folder} has a {family}")
    if device == "cpu" and config.device_map is None:
        leave_busy_cores()
    transformers.utils.logging.disable_progress_bar()
    from_pretrained: Any = transformers.AutoModelForImageTextToText.from_pretrained
    if checkpoint.is_packed(folder):
        from_pretrained = from_packed
    processor = load_processor(folder)
    question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    with as_user_error(Exception, f"the processor in {folder} cannot write a prompt (is chat_template.jinja there?)"):
        processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    check_processor(processor, config, folder)
    placement: dict[str, Any] = {} if config.device_map is None else {"device_map": config.device_map}
    is_quantised = quantised.settings_in(from_json((folder / "config.json").read_bytes())) is not None
    if not placement and is_quantised:
        placement = {"device_map": {"": device}}  # such weights cannot be moved once they are loaded
    with as_user_error(Exception, f"cannot load the model in {folder}"):
        model, info = from_pretrained(
            folder,
            trust_remote_code=False,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below, where the message can name the tensor
            **({} if config.unpack is None else {"unpack": config.unpack}),
            **_names_of_tower(family, folder),
            **placement,
        )
        model = model.eval() if placement else model.eval().to(device)
    if is_quantised:
        quantised.check_dtype(model.dtype, folder, config.dtype)
    missing, misshapen = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors of its architecture, the first is {missing[0]}")
    if misshapen:
        name, shape, expected = misshapen[0]
        first = f"{name} is {list(shape)}, expected {list(expected)}"
        raise UserError(f"{folder} has {len(misshapen)} tensors that do not fit its config.json, the first: {first}")
    generation.check(vars(model.generation_config), str(folder / "generation_config.json"))
    return Loaded(model, processor, config, folder)


def _names_of_tower(family: str | None, folder: Path) -> dict[str, Any]:
    if family not in WITH_TOWERS:
        return {}
    names = key_mapping(getattr(transformers, WITH_TOWERS[family]), config_in(folder).vision_config.model_type)
    return {"key_mapping": names} if names else {}


def load_processor(folder: Path) -> Any:
    """Load the processor of a checkpoint; transformers would warn of how it resizes videos, which we do ourselves."""
    transformers.utils.logging.set_verbosity_error()
    with as_user_error(Exception, f"cannot load the processor in {folder}"):
        return transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def check_processor(processor: Any, config: ModelConfig, folder: Path) -> None:
    """Raise UserError if pixel limits do not apply to a processor, or if it cannot count visual tokens."""
    with as_user_error(ValueError):
        limits_of(processor, config)
    # Of the processors of LLaVA's families
    fields = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "num_image_tokens")
    missing = [name for name in fields if getattr(processor, name, 0) is None]
    if missing:
        raise UserError(f"the processor in {folder} lacks {', '.join(missing)}: set them in its processor_config.json")
