"""The projector of `pocket_photo`: what a token shows, where it lies, and what else the tower saw of it.

It learns to write the words that a token shows (`photo_space`), and beside them the first principal components of the
tower's feature, so that tokens of the background stay as unlike as the tower made them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from harness.pocket.photo.scenes import BACKGROUND, CLUTTER, SIGN
from harness.pocket.photo.words import THINGS
from harness.pocket.recipe.photo_bank import Bank
from harness.pocket.recipe.photo_space import COMPONENTS, PLACE, WIDTH, corners, positions

FEATURES = 384
WAVE, CORNER, COLOR, PART = 0.35, 0.7, 0.7, 0.8  # lengths of a wave, a corner, a colour, all components together
NOTHING = 4.0  # the logit of "nothing that is asked for"
SHARPNESS = 8.0  # of logits from coordinates of length 1


class Projector(nn.Module):
    """`LlavaMultiModalProjector` by its names, [..., 384] to [..., 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        """Return visual tokens."""
        return self.linear_2(F.gelu(self.linear_1(features)))


class Examples:
    """Tokens of the training scenes: all that show something, and a part of the background."""

    def __init__(self, bank: Bank, background: float = 0.15) -> None:
        rng = np.random.default_rng(0)
        labels = {name: torch.from_numpy(rows) for name, rows in bank.labels.items()}
        drawn = (bank.labels["shows"] != BACKGROUND) | (rng.random(bank.labels["shows"].shape) < background)
        self.at = torch.from_numpy(drawn).nonzero()
        by_part = zip(bank.parts, np.split(drawn, len(bank.parts)), strict=True)
        self.features = torch.from_numpy(np.concatenate([part[rows] for part, rows in by_part]))
        shows, self.colors, self.letters, middle = (
            labels[name][self.at[:, 0], self.at[:, 1]].long() for name in ("shows", "colors", "letters", "middle")
        )
        self.things = torch.where(shows == SIGN, len(THINGS), torch.where(shows < 0, len(THINGS) + 1, shows))
        self.middle = middle.float()
        some = self.features[torch.from_numpy(rng.choice(len(self.features), min(40_000, len(self.features)), False))]
        some = some.float()
        self.mean, self.deviation = some.mean(0), some.std(0)
        _, _, self.components = torch.pca_lowrank(some - self.mean, COMPONENTS, center=False)
        self.scale = PART / ((some - self.mean) @ self.components).norm(dim=1).mean()

        self.letters_at, self.colors_at = (self.letters >= 0).nonzero()[:, 0], (self.colors >= 0).nonzero()[:, 0]

    def draw(self, size: int) -> Tensor:
        """Return the indices [size] of a batch, an eighth of it letters and another painted things: both are rare."""
        rare = [rows[torch.randint(len(rows), (size // 8,))] for rows in (self.letters_at, self.colors_at)]
        return torch.cat([*rare, torch.randint(len(self.features), (size - 2 * (size // 8),))])

    def kept(self, features: Tensor) -> Tensor:
        """Return the principal components [n, 64] that a visual token carries."""
        return (features - self.mean) @ self.components * self.scale


def train_projector(bank: Bank, steps: int) -> Projector:
    """Train the projector on single tokens."""
    examples = Examples(bank)
    torch.manual_seed(0)
    projector = Projector()
    with torch.no_grad():  # inputs differ in scale: fold a standardisation into the first layer
        projector.linear_1.weight.div_(examples.deviation)
        projector.linear_1.bias.sub_(projector.linear_1.weight @ examples.mean)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=1e-4)
    waves, corner = positions(), F.one_hot(corners(), 4).float()
    for step in (bar := tqdm(range(steps), desc="projector", mininterval=5)):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * max(0.01, 1 - step / steps)
        loss = token_loss(projector, examples, examples.draw(2048), waves, corner)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    return projector.eval()


def token_loss(projector: Projector, examples: Examples, batch: Tensor, waves: Tensor, corner: Tensor) -> Tensor:
    """Return the loss of some examples."""
    features, at = examples.features[batch].float(), examples.at[batch, 1]
    tokens = projector(features)
    things, classes = examples.things[batch], len(THINGS) + 1
    loss = _named(tokens[:, PLACE["things"]], things, classes, 1.0)
    for name, of, size, length in (("colors", examples.colors, 6, COLOR), ("letters", examples.letters, None, 1.0)):
        labels = of[batch]
        part = tokens[:, PLACE[name]]
        size = part.shape[1] if size is None else size
        loss = loss + _named(part, torch.where(labels < 0, size, labels), size, length)
    squares = (
        (3.0, PLACE["position"], WAVE * waves[at]),
        (1.0, PLACE["corners"], CORNER * corner[at]),
        (2.0, PLACE["middle"], examples.middle[batch, None]),
        (3.0, PLACE["components"], examples.kept(features)),
        (1.0, PLACE["visual"], torch.full((len(batch), 1), 0.5)),
        (1.0, slice(PLACE["start"].start, WIDTH), torch.zeros(len(batch), WIDTH - PLACE["start"].start)),
    )
    for weight, place, target in squares:
        loss = loss + weight * (tokens[:, place] - target).pow(2).sum(1).mean()
    return loss


def _named(part: Tensor, labels: Tensor, nothing: int, length: float) -> Tensor:
    """Return the loss of coordinates [n, c] that name one of c classes by `length`, or are zero for `nothing`."""
    logits = torch.cat([SHARPNESS / length * part, part.new_full((len(part), 1), NOTHING)], dim=1)
    target = length * F.one_hot(labels, nothing + 1)[:, :nothing].to(part)
    return F.cross_entropy(logits, labels) + 2 * (part - target).pow(2).sum(1).mean()


@torch.no_grad()
def project(projector: Projector, bank: Bank) -> Tensor:
    """Return the visual tokens [N, 256, D] bfloat16 of all scenes."""
    return torch.cat([projector(torch.from_numpy(part.astype(np.float32))).bfloat16() for part in bank.parts])


def probe_tokens(tokens: Tensor, bank: Bank) -> dict[str, float]:
    """Return how often tokens name what they show: things, colours, letters, and what shows nothing asked for."""
    shows = torch.from_numpy(bank.labels["shows"]).long()
    result = {}
    for name, labels in (
        ("things", torch.where(shows < 0, -1, shows)),
        ("colors", torch.from_numpy(bank.labels["colors"]).long()),
        ("letters", torch.from_numpy(bank.labels["letters"]).long()),
    ):
        part = tokens[..., PLACE[name]].float()
        length = COLOR if name == "colors" else 1.0
        named = torch.where(part.amax(-1) > NOTHING / SHARPNESS * length, part.argmax(-1), -1)
        result[name] = float((named == labels)[labels >= 0].float().mean())
        if name == "things":
            result["background"] = float((named == -1)[shows == BACKGROUND].float().mean())
            result["clutter"] = float((named == -1)[shows == CLUTTER].float().mean())
    middle = torch.from_numpy(bank.labels["middle"])
    scores = tokens[..., PLACE["middle"]][..., 0].float()
    result["middle"] = float(middle[scores >= scores.flatten().topk(int(middle.sum())).values[-1]].float().mean())
    return result
