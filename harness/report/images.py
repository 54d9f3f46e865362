"""Text and pictures of the gallery's questions, from the task and the model's processor."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from harness.core.config import ModelConfig, TasksConfig
from harness.core.errors import UserError, one_line
from harness.models import checkpoint
from harness.report import crops

# How a picture is made to fit its share of the page: (longest side or None, WebP quality or None for lossless).
STEPS = ((None, None), (None, 88), (896, 80), (640, 72), (448, 66), (320, 55), (200, 45))

DRAWING = 20  # photographs become two or three times smaller without loss, drawings this much and more


@dataclass(frozen=True)
class Asked:
    """A question as the model saw it, with one picture for each temporal step of each grid."""

    text: str
    target: str
    pictures: list[Image.Image]


class Questions:
    """The tasks of one setting with the processor of its model."""

    def __init__(self, config: dict[str, Any]):
        self.model = ModelConfig(**config["model"])
        folder = checkpoint.check(self.model)  # before anything slow is imported
        if folder is None:
            raise UserError(f"the processor of {self.model.pretrained} is not on this machine")

        from harness.evaluation.datasets import local
        from harness.evaluation.task_suite import TaskSuite
        from harness.models.loading import load_processor
        from harness.models.model_folder import ModelFolder

        prompts = ModelFolder(folder).adapter.prompts
        self.processor = load_processor(folder)
        tasks = TasksConfig(**config["tasks"])
        self.suite = TaskSuite(tasks, prompts, local(tasks, config.get("data_root")))

    def ask(self, task: str, places: Iterable[tuple[int, Sequence[Sequence[int]]]]) -> Iterator[Asked]:
        """Yield the question of each (doc_id, recorded grids); UserError if the data or the processor have changed."""
        from harness.models.limits import limits_of
        from harness.models.preprocessing import to_inputs

        loaded = self.suite.load(task)
        limits = limits_of(self.processor, self.model)
        for doc_id, grids in places:
            if doc_id >= len(loaded.task_docs):
                raise UserError(f"task {task} has {len(loaded.task_docs)} questions here, the runs were asked more")
            doc = loaded.task_docs[doc_id]
            messages = self.suite.messages(loaded, doc)
            inputs = to_inputs(self.processor, [messages], limits)
            pictures, shown_grids = shown(self.processor, inputs, messages, grids)
            if shown_grids != [list(grid) for grid in grids]:
                raise UserError(
                    f"task {task} shows {shown_grids} tokens in question {doc_id}, the runs saw {list(grids)}"
                )
            texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
            target = loaded.doc_to_target(doc)
            target_text = " / ".join(map(str, target)) if isinstance(target, list | tuple) else str(target)
            yield Asked("\n".join(texts).strip(), target_text, pictures)


def shown(
    processor: Any, inputs: Any, messages: Any, grids: Sequence[Sequence[int]]
) -> tuple[list[Image.Image], list[list[int]]]:
    """Recover from the input tensors what the model was shown: one picture a temporal step, and the grids in tokens.

    Resized, cropped and padded as the processor does, so that a token of the grid lies where it lies on the picture.
    """
    from harness.models.preprocessing import media_of

    about = processor.image_processor
    if crops.has_crops(inputs):
        return [_picture(step, about) for step in crops.pictures(processor, inputs, grids)], [*map(list, grids)]
    if not hasattr(about, "merge_size"):  # whole pictures or tiles [I, 3, H, W], which carry no grid of their own
        tensors = [] if "pixel_values" not in inputs else list(np.asarray(inputs["pixel_values"].float()))
        return [_picture(pixels.transpose(1, 2, 0), about) for pixels in tensors], [list(grid) for grid in grids]
    pictures, shown_grids = [], []
    kinds = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
    patches = {kind: np.asarray(inputs[names[0]].float()) for kind, names in kinds.items() if names[0] in inputs}
    sizes = {kind: iter(inputs[names[1]].tolist()) for kind, names in kinds.items() if names[1] in inputs}
    for kind, _ in media_of([messages]):
        t, h, w = next(sizes[kind])
        rows, patches[kind] = np.split(patches[kind], [t * h * w])
        pictures += [_picture(step, about) for step in _unfold(rows, t, h, w, about)]
        shown_grids.append([t, h // about.merge_size, w // about.merge_size])
    return pictures, shown_grids


def _unfold(rows: np.ndarray, t: int, h: int, w: int, about: Any) -> Iterator[np.ndarray]:
    """Yield the first frame [H, W, 3] of each step; `rows` are patches [t h w, 3 T p p], m x m neighbours together."""
    m, p = about.merge_size, about.patch_size
    folded = rows.reshape(t, h // m, w // m, m, m, 3, -1, p, p)[..., 0, :, :]
    yield from folded.transpose(0, 1, 3, 6, 2, 4, 7, 5).reshape(t, h * p, w * p, 3)


def _picture(pixels: np.ndarray, about: Any) -> Image.Image:
    values = pixels * np.asarray(about.image_std) + np.asarray(about.image_mean)
    return Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))


def encoded(picture: Image.Image, most: int) -> bytes:
    """Encode a picture as WebP of at most `most` bytes, or as small as possible."""
    data = b""
    plain = 3 * picture.width * picture.height
    for side, quality in STEPS[plain > DRAWING * most :]:
        small = picture.copy()
        if side:
            small.thumbnail((side, side))
        stream = io.BytesIO()
        small.save(stream, "WEBP", method=4, **({"lossless": True} if quality is None else {"quality": quality}))
        data = stream.getvalue()
        if len(data) <= most:
            break
    return data


def as_uri(data: bytes) -> str:
    """Return WebP bytes as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def count(setting: dict[str, Any]) -> int:
    """Count the pictures of a setting's questions: one for each temporal step of each image or video."""
    return sum(t for question in setting["questions"] for t, _, _ in question["grids"])


def illustrate(setting: dict[str, Any], config: dict[str, Any], keep: Callable[[Image.Image], str]) -> list[str]:
    """Add "text", "target" and "pictures" to the questions of a setting; returns what could not be shown, and why.

    `keep` stores a picture and returns its address.
    """
    missing = []
    try:
        source = Questions(config)
    except Exception as error:  # the Hub, transformers and lmms-eval have no error in common
        return [f"{setting['model']} on {setting['tasks']}: {_why(error)}"]
    for task in dict.fromkeys(question["task"] for question in setting["questions"]):
        questions = [question for question in setting["questions"] if question["task"] == task]
        try:
            asked = source.ask(task, [(question["doc_id"], question["grids"]) for question in questions])
            for question, source_question in zip(questions, asked, strict=True):
                pictures = [keep(picture) for picture in source_question.pictures]
                question.update(text=source_question.text, target=source_question.target, pictures=pictures)
        except (Exception, SystemExit) as error:  # lmms-eval, its tasks and datasets raise anything here
            missing.append(f"{setting['model']}, {task}: {_why(error)}")
    return missing


def _why(error: BaseException) -> str:
    return one_line(error)[:200] if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)[:200]}"
