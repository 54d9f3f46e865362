"""Compute D2Pruner's debiasing prior of a model: python -m harness.d2prior model=pocket tasks=pocket.

The prior is the attention that the last token of a neutral prompt pays to each position of an image, whatever the image
shows: the mean over many images at one decoder layer, on a grid. Its images should not be those of the evaluation. The
file records its origin. Pass it to a run as method=d2pruner method.prior=FILE.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

import harness
import methods
from harness.core.command import command
from harness.core.config import TasksConfig, validate
from harness.core.console import print_json, say
from harness.core.errors import UserError, one_line
from harness.core.files import check_file, make_folder, slug, writing
from harness.core.rules import at_least, require, text
from harness.evaluation import preflight as run
from harness.evaluation.datasets import DataRoot, local
from harness.evaluation.task_suite import TaskSuite
from harness.models import checkpoint
from harness.models.bad_input import BadInput
from harness.models.limits import limits_of
from harness.models.loading import Loaded, load
from harness.models.preprocessing import Message, messages_digest, to_inputs
from methods import d2pruner_prior
from methods.base import Selection, Tokens
from methods.kernels.attention import attention_row
from methods.layer_method import LayerMethod
from methods.tokens import Grid

PLACE = Path("results/priors")


@dataclass(kw_only=True)
class Probe(LayerMethod):
    """Record the attention of the prompt's last token; the selected tokens do not matter.

    Deviation: none. Source: ours.
    """

    tiles: list[tuple[Tensor, Grid]] = field(default_factory=list, init=False)  # attention [h * w] and grid

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        state = tokens.llm
        assert state is not None
        attention = attention_row(state.q[:, -1], state.k)[state.visual_idx]
        self.tiles += zip(attention.split([t * h * w for t, h, w in tokens.grids]), tokens.grids, strict=True)
        return Selection.of(torch.arange(k, device=tokens.features.device))


def prompts(tasks: TasksConfig, prompt: str, data_root: DataRoot = None) -> Iterator[list[Message]]:
    """Yield the prompt with every distinct image, in turns from each task; videos are skipped."""
    suite = TaskSuite(tasks, data=local(tasks, data_root))
    suite.check()
    digests = set()
    for turn in zip_longest(*map(suite.images, tasks.metrics)):
        for image in (image for image in turn if image is not None):
            messages = [
                {"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": prompt}]}
            ]
            if (digest := messages_digest(messages)) not in digests:
                digests.add(digest)
                yield messages


def attention(loaded: Loaded, prompts: Iterable[list[Message]], layer: int) -> Iterator[tuple[Tensor, Grid]]:
    """Yield attention [h * w] and grid of each image or tile: what the prompt's last token attends to at a layer."""
    probe, limits = Probe(layer=layer), limits_of(loaded.processor, loaded.config)
    with harness.prune(loaded.model, probe, tokens=1):
        for messages in prompts:
            with torch.inference_mode():
                loaded.model(**to_inputs(loaded.processor, [messages], limits).to(loaded.device))
            yield from probe.tiles  # none for an image of one token, which is not pruned
            probe.tiles.clear()


def main(cfg: DictConfig) -> None:
    """Compute the prior, write it, and print where."""
    config = validate(_run(cfg))
    layer = int(methods.load("d2pruner", **config.params).stage.partition(":")[2])
    loaded = load(config.model)
    batch = list(islice(prompts(config.tasks, str(cfg.prompt), config.data_root), cfg.limit))
    try:
        prior = d2pruner_prior.average(attention(loaded, tqdm(batch, desc="images"), layer))
    except BadInput as error:
        raise UserError(f"tasks={config.tasks.name}: a question cannot be shown: {error}") from error
    except ValueError as error:
        raise UserError(f"tasks={config.tasks.name}: {one_line(error)} of two tokens or more") from error
    images = d2pruner_prior.digest(map(messages_digest, batch))
    metadata = {
        "prompt": cfg.prompt,
        "name": config.model.name,
        "model": checkpoint.weights_fingerprint(loaded.folder),
        "layer": layer,
        "tasks": ",".join(config.tasks.metrics),
        "images": images,
        "count": len(batch),
        "grid": "x".join(map(str, prior.shape)),
    }
    name = f"{slug(config.model.name)}-layer{layer}-{images[:8]}.safetensors"
    file = PLACE / name if cfg.out is None else Path(str(cfg.out))
    make_folder(file.parent)
    with writing(file):
        d2pruner_prior.save(file, prior, metadata)
    digest = d2pruner_prior.load(file)[1]["digest"]
    say(f"{metadata['grid']} prior of {config.model.name} at decoder layer {layer}, from {len(batch)} images: {file}")
    say(f"python -m harness method=d2pruner method.prior={file} model={config.model.name} keep=0.25")
    print_json({"prior": str(file), "digest": digest, **metadata})


def _run(cfg: DictConfig) -> DictConfig:
    """Return the configuration of a run that would use the prior, so that the same checks apply."""
    method = {"name": "d2pruner", "layer": cfg.layer, "prior": "none"}
    shared = {"model": cfg.model, "tasks": cfg.tasks, "data_root": cfg.data_root}
    return OmegaConf.create({"method": method, "keep": 0.5, **shared})


def check(cfg: DictConfig) -> None:
    """Raise UserError for whatever can be checked before the model is loaded."""
    check_file(PLACE / "prior" if cfg.out is None else cfg.out, "out", may_make_folder=True)
    located = run.check(_run(cfg))
    require(cfg, {"limit": at_least(1), "prompt": text()})
    run.check_parameters(located.config)
    run.check_family(located)


if __name__ == "__main__":
    command("d2prior", main, (check,), run.prepare)
