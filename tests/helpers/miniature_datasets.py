"""Make twelve questions of each of the paper's fourteen benchmarks: python tests/helpers/miniature_datasets.py FOLDER.

Repositories, configurations, splits, columns and types are those of the real data sets on the Hub, so that lmms-eval's
own tasks load and score them. Texts and pictures are synthetic. Pass the folder as data_root=FOLDER.
"""

import sys
from pathlib import Path
from typing import Any

from datasets import Image, List, Value, disable_progress_bars
from miniature_files import COLOURS, INT, LETTERS, ROWS, TEXT, picture, write
from miniature_videos import videomme, vinoground

REFCOCO_SIZE = 160, 120
REFCOCO_BOXES = [
    (16, 24, 80, 48),
    (0, 0, 40, 30),
    (120, 60, 40, 60),
    (32, 12, 16, 96),
]  # left, top, width, height


def ai2d(root: Path) -> None:
    columns = {"question": TEXT, "options": List(TEXT), "answer": TEXT, "image": Image()}
    options = ["root", "stem", "leaf", "seed"]
    rows = [
        {"question": f"What is labelled {i}?", "options": options, "answer": str(i % 4), "image": picture(i)}
        for i in range(ROWS)
    ]
    write(root / "ai2d", "test", columns, rows)


def chartqa(root: Path) -> None:
    columns = {"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()}
    answers = ["100", "0.42", "Yes", "blue", "7", "50%", "2004", "3.5", "0", "No", "12", "red"]
    rows = [
        {
            "type": "augmented_test" if i % 2 else "human_test",
            "question": f"What does bar {i} say?",
            "answer": answer,
            "image": picture(i),
        }
        for i, answer in enumerate(answers)
    ]
    write(root / "ChartQA", "test", columns, rows)


def docvqa(root: Path) -> None:
    columns = {
        "questionId": TEXT,
        "question": TEXT,
        "question_types": List(TEXT),
        "image": Image(),
        "docId": INT,
        "ucsf_document_id": TEXT,
        "ucsf_document_page_no": TEXT,
        "answers": List(TEXT),
        "data_split": TEXT,
    }
    answers = [["March 4"], ["ITC Limited", "itc"], ["1,250"], ["Invoice"], ["Smith"], ["ten"], ["New  York"], ["A"]]
    answers += [["total"], ["2/3/91"], ["p. 7"], ["Dr. Lee", "Lee"]]

    def row(i: int, split: str, answers: list[str] | None) -> dict[str, Any]:
        return {
            "questionId": str(i),
            "question": f"What stands in line {i}?",
            "question_types": ["layout"],
            "image": picture(i),
            "docId": i,
            "ucsf_document_id": f"abcd{i:04}",
            "ucsf_document_page_no": "1",
            "answers": answers,
            "data_split": split,
        }

    validation = [row(i, "val", known) for i, known in enumerate(answers)]
    write(root / "DocVQA", "validation", columns, validation, "DocVQA")


def mmbench(root: Path) -> None:
    columns = dict.fromkeys(("question", "hint", "answer", *LETTERS, "category"), TEXT)
    columns = {"index": INT, **columns, "image": Image(), "source": TEXT, "L2-category": TEXT, "comment": TEXT}
    columns["split"] = TEXT
    words = {
        "en": ("What is shown?", ["a circle", "a square", "a star", "a cross"]),
        "cn": ("图中是什么？", ["圆形", "方形", "星形", "十字"]),
    }
    for language, (question, options) in words.items():
        rows = []
        for index, count in ((1, 2), (2, 4), (3, 4), (4, 2)):
            for turn in range(count):  # the same question with its options turned, as often as there are options
                turned = [options[(turn + place) % count] for place in range(count)] + ["nan"] * (4 - count)
                rows.append(
                    {
                        "index": index + turn * 1_000_000,
                        "question": question,
                        "hint": "nan" if index % 2 else "Look closely.",
                        "answer": LETTERS[turned.index(options[0])],
                        **dict(zip(LETTERS, turned, strict=True)),
                        "category": "image_scene" if index < 3 else "ocr",
                        "L2-category": "coarse_perception" if index < 3 else "finegrained_perception (instance-level)",
                        "image": picture(index),
                        "source": "self-made",
                        "comment": "nan",
                        "split": "dev",
                    }
                )
        write(root / "MMBench", "dev", columns, rows, language)


def mme(root: Path) -> None:
    columns = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "category": TEXT}
    categories = ["existence", "existence", "count", "color", "code_reasoning", "commonsense_reasoning"]
    rows = [
        {
            "question_id": f"{category}/{i}.png",
            "image": picture(i),
            "question": f"Is it {answer}? Please answer yes or no.",
            "answer": answer,
            "category": category,
        }
        for i, category in enumerate(categories)
        for answer in ("Yes", "No")
    ]
    write(root / "MME", "test", columns, rows)


def mmstar(root: Path) -> None:
    meta = {"source": TEXT, "split": TEXT, "image_path": TEXT}
    columns = {"index": INT, "question": TEXT, "image": Image(), "answer": TEXT}
    columns |= {"category": TEXT, "l2_category": TEXT, "meta_info": meta}
    kinds = [("coarse perception", "image scene and topic")] * 3 + [("coarse perception", "image style & quality")] * 2
    kinds += [("math", "geometry")] * 4 + [("logical reasoning", "code & sequence reasoning")] * 3
    rows = [
        {
            "index": i,
            "question": "What is it?\nOptions: A: one, B: two, C: three, D: four",
            "image": picture(i),
            "answer": LETTERS[i % 4],
            "category": category,
            "l2_category": kind,
            "meta_info": {"source": "self-made", "split": "val", "image_path": f"images/{i}.png"},
        }
        for i, (category, kind) in enumerate(kinds)
    ]
    write(root / "Lin-Chen" / "MMStar", "val", columns, rows)


def ocrbench(root: Path) -> None:
    columns = {"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": List(TEXT), "image": Image()}
    texts = {
        "Regular Text Recognition": [["CENTRE"]],
        "Irregular Text Recognition": [["ronaldo"]],
        "Artistic Text Recognition": [["cafe"]],
        "Handwriting Recognition": [["hello"]],
        "Digit String Recognition": [["2017"]],
        "Non-Semantic Text Recognition": [["xqz"]],
        "Scene Text-centric VQA": [["stop", "STOP"], ["open"]],
        "Doc-oriented VQA": [["12"], ["Total"]],
        "Key Information Extraction": [["9.00"]],
        "Handwritten Mathematical Expression Recognition": [["x ^ 2"]],
    }
    rows = [
        {
            "dataset": "HME100k" if kind.startswith("Handwritten") else "self-made",
            "question": "what is written in the image?",
            "question_type": kind,
            "answer": answer,
            "image": picture(len(kind)),
        }
        for kind, answers in texts.items()
        for answer in answers
    ]
    write(root / "echo840" / "OCRBench", "test", columns, rows)


def pope(root: Path) -> None:
    columns = dict.fromkeys(("id", "question_id", "question", "answer", "image_source"), TEXT)
    columns |= {"image": Image(), "category": TEXT}
    rows = [
        {
            "id": str(i),
            "question_id": str(i + 1),
            "question": "Is there a dog in the image?",
            "answer": "yes" if i < ROWS // 2 else "no",
            "image_source": f"COCO_val2014_{i:012}",
            "image": picture(i),
            "category": "adversarial",
        }
        for i in range(ROWS)
    ]
    write(root / "POPE", "test", columns, rows)


def scienceqa(root: Path) -> None:
    texts = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    columns = {"image": Image(), "question": TEXT, "choices": List(TEXT), "answer": Value("int8")}
    columns |= dict.fromkeys(texts, TEXT)
    rows = [
        {
            **dict.fromkeys(texts, "self-made"),
            "image": picture(i),
            "question": "Which holds water best?",
            "choices": ["sand", "soil", "rock"],
            "answer": i % 3,
            "hint": "" if i % 2 else "Read the table.",
        }
        for i in range(ROWS)
    ]
    write(root / "ScienceQA", "test", columns, rows, "ScienceQA-IMG")


def textvqa(root: Path) -> None:
    texts = ("image_id", "question", "flickr_original_url", "flickr_300k_url", "set_name")
    columns = dict.fromkeys(texts, TEXT) | {"question_id": Value("int32"), "image": Image()}
    columns |= {"image_width": Value("int32"), "image_height": Value("int32")}
    columns |= {name: List(TEXT) for name in ("question_tokens", "answers", "image_classes", "ocr_tokens")}
    counts = [10, 4, 3, 2, 1, 0, 10, 10, 10, 10, 0, 2]  # of ten people, how many answered "nokia"
    rows = [
        {
            **dict.fromkeys(texts, "self-made"),
            "question_id": 34602 + i,
            "image": picture(i),
            "image_width": 84,
            "image_height": 56,
            "question": "what brand is it?",
            "question_tokens": ["what", "brand", "is", "it"],
            "answers": ["nokia"] * count + (["2"] * 10 if i == 10 else [f"other {j}" for j in range(10 - count)]),
            "image_classes": ["Mobile phone"],
            "ocr_tokens": ["NOKIA"],
        }
        for i, count in enumerate(counts)
    ]
    write(root / "textvqa", "validation", columns, rows)


def seedbench(root: Path) -> None:
    texts = ("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_id", "data_type", "question")
    columns = dict.fromkeys(texts, TEXT) | {"question_id": TEXT, "question_type_id": Value("int16")}
    columns |= {"image": List(Image()), "segment": List(INT)}
    rows = [
        {
            "answer": LETTERS[i % 4],
            **{f"choice_{letter}": word for letter, word in zip("abcd", COLOURS, strict=False)},
            "data_id": str(i),
            "data_type": "image" if i < 8 else "video",
            "question": "Which colour is the ground?",
            "question_id": str(1000 + i),
            "question_type_id": 1,
            "image": [picture(i + step) for step in range(1 if i < 8 else 3)],
            "segment": None,
        }
        for i in range(ROWS)
    ]
    write(root / "SEED-Bench", "test", columns, rows)


def refcoco(root: Path) -> None:
    """Write RefCOCO, RefCOCO+ and RefCOCOg: a row for each target, `bbox` as left, top, width, height in pixels."""
    columns = dict.fromkeys(("question_id", "question", "file_name"), TEXT)
    columns |= {"image": Image(), "answer": List(TEXT), "iscrowd": Value("int8")}
    columns |= {name: List(Value("float32")) for name in ("segmentation", "bbox")}
    repositories = {"RefCOCO": ("val", "test", "testA", "testB"), "RefCOCOplus": ("val", "testA", "testB")}
    for name, splits in (repositories | {"RefCOCOg": ("val", "test")}).items():
        for split in splits:
            rows = [
                {
                    "question_id": str(i),
                    "image": picture(i, *REFCOCO_SIZE),
                    "question": "Please carefully observe the area circled in the image and come up with a caption.",
                    "answer": [f"white thing {i}"] if i % 2 else [f"white thing {i}", f"the square {i}"],
                    "segmentation": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
                    "bbox": list(REFCOCO_BOXES[i]),
                    "iscrowd": 0,
                    "file_name": f"COCO_train2014_{i:012}.jpg",
                }
                for i in range(len(REFCOCO_BOXES))
            ]
            write(root / name, split, columns, rows)


def gqa(root: Path) -> None:
    """Write questions and, as another configuration of the same repository, the pictures that they name."""
    texts = ("id", "imageId", "question", "answer", "fullAnswer", "semanticStr")
    answers = ["red", "no", "left", "table", "yes", "dog"] * 2
    rows = [
        {
            "id": f"{i:08}",
            "imageId": f"n{i // 2}",
            "question": f"What is number {i}?",
            "isBalanced": True,
            "answer": answer,
            "fullAnswer": f"It is {answer}.",
            "semanticStr": "select: thing->query: name",
        }
        for i, answer in enumerate(answers)
    ]
    columns = dict.fromkeys(texts, TEXT) | {"isBalanced": Value("bool")}
    write(root / "GQA", "testdev", columns, rows, "testdev_balanced_instructions")
    pictures = [{"id": f"n{i}", "image": picture(i)} for i in range(ROWS // 2)]
    write(root / "GQA", "testdev", {"id": TEXT, "image": Image()}, pictures, "testdev_balanced_images")


def aime24(root: Path) -> None:
    """Write questions without pictures, which lmms-eval asks eight times each in `aime24_nofigures_agg8`."""
    columns = {"id": INT, **dict.fromkeys(("problem", "solution", "answer", "url"), TEXT), "year": INT}
    rows = [
        {
            "id": 60 + i,
            "problem": f"What is {i} times {i}?",
            "solution": f"It is {i * i}.",
            "answer": str(i * i),
            "url": "https://example.org",
            "year": 2024,
        }
        for i in range(ROWS)
    ]
    write(root / "aime24_nofigures", "train", columns, rows)


BENCHMARKS = (ai2d, chartqa, docvqa, mmbench, mme, mmstar, ocrbench, pope, scienceqa, textvqa, seedbench, videomme)


def main(root: Path) -> None:
    """Write all data sets, some below their owner's name and some without it: both places are searched."""
    disable_progress_bars()
    for benchmark in (*BENCHMARKS, vinoground):
        benchmark(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
