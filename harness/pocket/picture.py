"""Draw what runs kept of one question's picture: `python -m harness.pocket.picture --task documents --doc 5`."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from harness.pocket import TASKS, order
from harness.pocket.scenes import TOKEN, font

CAPTION = 52  # pixels above each panel
FAINT = 0.82  # how far a dropped token fades to white


def _line(file: Path, task: str, doc: int) -> dict:
    if not file.is_file():
        raise SystemExit(f"error: no {file}: committed runs come without answers, `make results` makes them")
    for text in file.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["task"] == task and line["doc_id"] == doc:
            return dict(line)
    raise SystemExit(f"error: no document {doc} of {task} in {file}: run `python -m harness` without limit first")


def faded(image: Image.Image, kept: list[int], token: int = TOKEN) -> Image.Image:
    """The picture with every token that was dropped faded; `kept` are indices in reading order, `token` their side."""
    pixels = np.asarray(image, dtype=float)
    rows, columns = pixels.shape[0] // token, pixels.shape[1] // token
    mask = np.zeros(rows * columns, dtype=bool)
    mask[kept] = True
    stays = mask.reshape(rows, columns).repeat(token, 0).repeat(token, 1)[..., None]
    return Image.fromarray(np.where(stays, pixels, 255 * FAINT + pixels * (1 - FAINT)).astype(np.uint8))


def panels(task: str, doc: int, runs: Path, labels: list[str]) -> Image.Image:
    """One panel a run: its name and answer above what it kept. Only one finished run may bear each label."""
    rows = pd.read_parquet(TASKS / "data" / f"{task}.parquet")
    row = rows.iloc[order(len(rows))[doc]]
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    sheet = Image.new("RGB", ((image.width + 12) * len(labels) + 12, image.height + CAPTION + 34), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 8), f"{row['question'].splitlines()[0]}  ({row['answer']})", font=font(17), fill="black")
    for i, label in enumerate(labels):
        folders = sorted(marker.parent for marker in runs.rglob(f"{label}-*/DONE"))
        if len(folders) != 1:
            raise SystemExit(f"error: {len(folders)} finished runs named {label}-* below {runs}: one is needed")
        kept = _line(folders[0] / "kept.jsonl", f"pocket_{task}", doc)
        if kept["k"] and not kept["kept"]:
            raise SystemExit(f"error: {label} shows the model another picture, of which it keeps everything")
        answer = _line(folders[0] / "responses.jsonl", f"pocket_{task}", doc)["response"].strip()
        x = 12 + i * (image.width + 12)
        draw.text((x, 38), f"{label}: {answer}   {kept['k']} of {kept['n']}", font=font(15), fill="black")
        sheet.paste(faded(image, kept["kept"]), (x, CAPTION + 10))
        draw.rectangle((x - 1, CAPTION + 9, x + image.width, CAPTION + 10 + image.height), outline="gray")
    return sheet


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="documents")
    parser.add_argument("--doc", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--labels", nargs="+", default=["none-1.0", "random-0.1", "visionselector-0.1", "idpruner-0.1"])
    parser.add_argument("--out", type=Path, default=Path("kept.png"))
    args = parser.parse_args()
    panels(args.task, args.doc, args.runs, args.labels).save(args.out)


if __name__ == "__main__":
    main()
