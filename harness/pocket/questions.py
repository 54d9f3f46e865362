"""Questions for training the scorer of a pocket model, from a seed that neither the suite nor the probes use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np

from harness.core.errors import UserError
from harness.pocket import clips
from harness.pocket.draw import SHARES, TRAIN_SEED, scene_at
from harness.train.conversations import Example

SEED = TRAIN_SEED + 20
PHOTO_SEED = 35


class DrawnQuestions:
    """A sequence of `count` scenes of the kinds in the suite, easy-VQA's training images included."""

    name: ClassVar[str] = "pocket"
    shares: ClassVar[Mapping[str, int]] = SHARES
    videos: ClassVar[Collection[str]] = ("video",)

    def __init__(self, count: int, shown: Collection[str]) -> None:
        kinds = {kind: times for kind, times in self.shares.items() if kind not in self.videos or "video" in shown}
        self._kinds = [kind for kind, times in kinds.items() for _ in range(times)]
        self._count = count
        self.digest = f"{self.name} {SEED} {count} {len(self._kinds)}"

    def __len__(self) -> int:
        return self._count

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Return one of the questions about a scene."""
        try:
            scene = scene_at(self._kinds[index % len(self._kinds)], SEED, index)
        except ModuleNotFoundError as error:
            raise UserError(f"data={self.name} draws with {error.name}: pip install -e '.[pocket]'") from error
        question = scene.questions[int(rng.integers(len(scene.questions)))]
        video = len(scene.frames) > 1
        media = {"type": "video", "url": scene.frames} if video else {"type": "image", "url": scene.frames[0]}
        content = [media, {"type": "text", "text": question.text}]
        return Example([{"role": "user", "content": content}], question.answer)


class DrawnClips(DrawnQuestions):
    """The same of the suites of clips and places."""

    name, shares = "pocket_clip", clips.SHARES
    videos = ("order", "times", "turns")


class DrawnPhotos:
    """A sequence of `count` scenes on photographs, as `pocket_photo` was trained on; needs the assets of these."""

    name: ClassVar[str] = "pocket_photo"

    def __init__(self, count: int, shown: Collection[str]) -> None:
        self._count = count
        self.digest = f"{self.name} {PHOTO_SEED} {count}"

    def __len__(self) -> int:
        return self._count

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Return one of the questions about a scene."""
        from harness.pocket.photo import questions, scenes

        fixed = np.random.default_rng([PHOTO_SEED, index])
        scene = scenes.draw(fixed)
        asked = questions.ask(scene, fixed)
        question = asked[int(rng.integers(len(asked)))]
        content = [{"type": "image", "url": scene.image}, {"type": "text", "text": question.text}]
        return Example([{"role": "user", "content": content}], question.answer)
