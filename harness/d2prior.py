"""D2Pruner's debiasing prior of a model: python -m harness.d2prior model=pocket tasks=pocket.

Where in an image the last token of a neutral prompt looks, whatever the image shows: the mean over many images of the
attention that visual tokens receive at one decoder layer, on a grid. It should come from other images than those that
are evaluated. The file says what it was made from; a run takes it as method=d2pruner method.prior=FILE.
"""

import json
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
from harness.core.errors import UserError, one_line
from harness.core.files import check_place, slug
from harness.core.rules import at_least, require
from harness.evaluation import preflight as run
from harness.evaluation.datasets import DataRoot, local
from harness.evaluation.task_suite import TaskSuite
from harness.models import checkpoint
from harness.models.loading import Loaded, load
from harness.models.preprocessing import Message, limits_of, messages_digest, to_inputs
from methods import d2pruner_prior
from methods.base import Selection, Tokens
from methods.kernels.attention import attention_row
from methods.layer_method import LayerMethod
from methods.tokens import Grid

PLACE = Path("results/priors")


@dataclass(kw_only=True)
class Probe(LayerMethod):
    """Note what the prompt's last token attends to; which tokens stay does not matter.

    Deviation: none. Source: ours.
    """

    seen: list[tuple[Tensor, Grid]] = field(default_factory=list, init=False)  # attention [h * w] and grid of each tile

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        state = tokens.llm
        assert state is not None
        paid = attention_row(state.q[:, -1], state.k)[state.visual_idx]
        self.seen += zip(paid.split([t * h * w for t, h, w in tokens.grids]), tokens.grids, strict=True)
        return Selection.of(torch.arange(k, device=tokens.features.device))


def prompts(tasks: TasksConfig, prompt: str, data_root: DataRoot = None) -> Iterator[list[Message]]:
    """The prompt about every image of the tasks, once, taking turns among them; videos are left out."""
    suite = TaskSuite(tasks, data=local(tasks, data_root))
    suite.check()
    known = set()
    for turn in zip_longest(*map(suite.images, tasks.metrics)):
        for image in (image for image in turn if image is not None):
            messages = [
                {"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": prompt}]}
            ]
            if (name := messages_digest(messages)) not in known:
                known.add(name)
                yield messages


def attention(loaded: Loaded, asked: Iterable[list[Message]], layer: int) -> Iterator[tuple[Tensor, Grid]]:
    """Per image or tile, what its tokens receive [h * w] from the last token of the prompt at decoder layer `layer`."""
    probe, limits = Probe(layer=layer), limits_of(loaded.processor, loaded.config)
    with harness.prune(loaded.model, probe, tokens=1):
        for messages in asked:
            with torch.inference_mode():
                loaded.model(**to_inputs(loaded.processor, [messages], limits).to(loaded.device))
            yield from probe.seen  # nothing of an image that is one token
            probe.seen.clear()


def main(cfg: DictConfig) -> None:
    """Make the prior, store it, and say where."""
    config = validate(_run(cfg))
    layer = int(methods.load("d2pruner", **config.params).stage.partition(":")[2])
    loaded = load(config.model)
    asked = list(islice(prompts(config.tasks, cfg.prompt, config.data_root), cfg.limit))
    try:
        prior = d2pruner_prior.average(attention(loaded, tqdm(asked, desc="images"), layer))
    except ValueError as error:
        raise UserError(f"tasks={config.tasks.name}: {one_line(error)} of two tokens or more") from error
    images = d2pruner_prior.digest(map(messages_digest, asked))
    about = {
        "prompt": cfg.prompt,
        "name": config.model.name,
        "model": checkpoint.weights_fingerprint(loaded.folder),
        "layer": layer,
        "tasks": ",".join(config.tasks.metrics),
        "images": images,
        "count": len(asked),
        "grid": "x".join(map(str, prior.shape)),
    }
    name = f"{slug(config.model.name)}-layer{layer}-{images[:8]}.safetensors"
    file = PLACE / name if cfg.out is None else Path(str(cfg.out))
    file.parent.mkdir(parents=True, exist_ok=True)
    d2pruner_prior.save(file, prior, about)
    digest = d2pruner_prior.load(file)[1]["digest"]
    print(f"{about['grid']} prior of {config.model.name} at decoder layer {layer}, from {len(asked)} images: {file}")
    print(f"python -m harness method=d2pruner method.prior={file} model={config.model.name} keep=0.25")
    print(json.dumps({"prior": str(file), "digest": digest, **about}))


def _run(cfg: DictConfig) -> DictConfig:
    """The run that would use the prior, which is checked like any other."""
    method = {"name": "d2pruner", "layer": cfg.layer, "prior": "none"}
    shared = {"model": cfg.model, "tasks": cfg.tasks, "data_root": cfg.data_root}
    return OmegaConf.create({"method": method, "keep": 0.5, **shared})


def check(cfg: DictConfig) -> None:
    """Everything that can be found wrong before the model is loaded."""
    located = run.check(_run(cfg))
    require(cfg, {"limit": at_least(1)})
    if not str(cfg.prompt or "").strip():
        raise UserError("prompt is empty: pass what the model is asked about every image")
    check_place((PLACE / "prior" if cfg.out is None else Path(str(cfg.out))).parent)
    run.check_parameters(located.config)
    run.check_family(located)


if __name__ == "__main__":
    command("d2prior", main, (check,), run.prepare)
