"""The pocket suite and its training code: what is drawn, how it is packed, what ships."""

import numpy as np
import pandas as pd
import pytest
import torch

from harness.pocket import CLIP_WEIGHTS, LLAVA_WEIGHTS, TASKS, WEIGHTS, clips, order
from harness.pocket.recipe.batches import Encoded, image_positions, pack, patchify, use_packed_attention
from harness.pocket.recipe.model import build_model
from harness.pocket.recipe.vocab import build_processor, build_tokenizer, label_words, token_of
from harness.pocket.scenes import KINDS, TOKEN, Mark, Scene, dense_targets, objects, video

TABLES = {
    "existence": {"yes": 0.5, "no": 0.5},
    "attributes": dict.fromkeys("ABCD", 0.25),
    "counting": dict.fromkeys("12345", 0.2),
    "video": {"A": 0.5, "B": 0.5},
}


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def model(processor):
    return build_model(processor.tokenizer).eval()


@pytest.mark.parametrize("kind", ALL_KINDS := {**KINDS, **clips.KINDS})
def test_scenes_are_a_function_of_their_seed(kind):
    first, again, other = (ALL_KINDS[kind](np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert [f.tobytes() for f in first.frames] == [f.tobytes() for f in again.frames]
    assert first.questions == again.questions
    assert first.frames[0].tobytes() != other.frames[0].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_sides_are_whole_tokens_between_224_and_448_pixels(kind):
    for seed in range(40):
        for frame in KINDS[kind](np.random.default_rng(seed)).frames:
            assert all(side % TOKEN == 0 and 224 <= side <= 448 for side in frame.size)


def test_dense_targets_lie_where_the_marks_are():
    scene = objects(np.random.default_rng(0))
    scene = Scene(scene.frames, [Mark((60, 30, 110, 80), ("red", "circle"), ("object",))])
    words = {word: i for i, word in enumerate(label_words())}
    columns = scene.frames[0].size[0] // TOKEN
    target = dense_targets(scene, words).reshape(-1, columns, len(words))
    assert target[1, 3, words["object"]] == 1  # centre (85, 55)
    assert target[..., words["object"]].sum() == 1
    assert set(zip(*np.nonzero(target[..., words["red"]]), strict=True)) == {(1, 2), (1, 3), (2, 2), (2, 3)}


def test_every_word_of_the_suite_is_one_token():
    tokenizer = build_tokenizer()
    for word in label_words():
        assert tokenizer.convert_tokens_to_ids(token_of(word)) != tokenizer.unk_token_id
    for text in ("What color is the star?", "Zürich, 42 €\nnext"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("kind", ["text", "video"])
def test_patches_are_those_of_the_stock_processor(processor, kind):
    frames = KINDS[kind](np.random.default_rng(1)).frames
    patches, grid = patchify(frames)
    if len(frames) == 1:
        stock = processor.image_processor(images=frames, return_tensors="pt")
        expected, thw = stock.pixel_values, stock.image_grid_thw
    else:
        stock = processor.video_processor(videos=[frames], return_tensors="pt", do_sample_frames=False)
        expected, thw = stock.pixel_values_videos, stock.video_grid_thw
    assert thw.tolist() == [list(grid)]
    torch.testing.assert_close(patches, expected, atol=1e-5, rtol=0)


def test_packed_attention_equals_the_stock_tower(processor):
    tower = build_model(processor.tokenizer).eval().model.visual
    parts = [patchify(objects(np.random.default_rng(i)).frames) for i in range(3)]
    patches, grids = torch.cat([p for p, _ in parts]), torch.tensor([g for _, g in parts])
    with torch.no_grad():
        stock = tower(patches, grid_thw=grids).pooler_output
        use_packed_attention(tower)
        packed = tower(patches, grid_thw=grids).pooler_output
    torch.testing.assert_close(packed, stock, atol=1e-5, rtol=1e-5)


def test_packed_questions_get_the_logits_that_each_gets_alone(processor, model):
    scene = objects(np.random.default_rng(5))
    patches, grid = patchify(scene.frames)
    asked = scene.questions[:4]
    with torch.no_grad():
        features = model.model.visual(patches, grid_thw=torch.tensor([grid])).pooler_output
        item = Encoded(features, (grid[0], grid[1] // 2, grid[2] // 2), asked)
        batch = pack([(item, asked)], processor.tokenizer, model.get_input_embeddings())
        hidden = model.model.language_model(
            inputs_embeds=batch["inputs_embeds"],
            position_ids=batch["position_ids"],
            attention_mask=batch["attention_mask"],
        ).last_hidden_state
        packed = model.lm_head(hidden)[0]
        answered = (batch["labels"][0] != -100).nonzero().flatten().tolist()
        starts = [i for i in answered if i - 1 not in answered]
        for question, start in zip(asked, starts, strict=True):
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=[prompt], images=scene.frames, return_tensors="pt")
            alone = model(**inputs).logits[0, -1]
            torch.testing.assert_close(packed[start - 1], alone, atol=1e-4, rtol=1e-4)


def test_video_positions_are_those_of_the_stock_model(processor, model):
    frames = video(np.random.default_rng(3)).frames
    content = [{"type": "video"}, {"type": "text", "text": "Which is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], videos=[frames], return_tensors="pt", do_sample_frames=False)
    positions, _ = model.model.get_rope_index(
        inputs.input_ids,
        mm_token_type_ids=inputs.mm_token_type_ids,
        video_grid_thw=inputs.video_grid_thw,
        second_per_grid_ts=torch.tensor([1.0]),
    )
    visual = inputs.input_ids[0] == model.config.video_token_id
    t, h, w = inputs.video_grid_thw[0].tolist()
    start = int(visual.nonzero()[0])
    assert torch.equal(positions[:, 0, visual], image_positions((t, h // 2, w // 2), start, interval=2))


@pytest.mark.parametrize("name", ["existence", "attributes", "counting", "video"])
def test_answers_are_balanced_so_that_chance_is_known(name):
    table = pd.read_parquet(TASKS / "data" / f"{name}.parquet", columns=["answer"])
    share = table["answer"].value_counts(normalize=True).to_dict()
    assert share == pytest.approx(TABLES[name])


def test_the_first_questions_of_a_sorted_file_are_like_the_rest():
    answers = pd.read_parquet(TASKS / "data" / "existence.parquet", columns=["answer"])["answer"]
    assert sorted(order(len(answers))) == list(range(len(answers)))
    assert (answers.iloc[order(len(answers))[:40]] == "yes").mean() == pytest.approx(0.5, abs=0.2)
    assert (answers.iloc[:40] == "yes").mean() == 1  # or there would be nothing to shuffle


def test_the_suite_has_the_promised_size():
    counts = {path.stem: len(pd.read_parquet(path, columns=["id"])) for path in (TASKS / "data").glob("*.parquet")}
    assert counts.pop("easyvqa") >= 500
    assert counts.pop("scenes") == 120  # no part of the suite
    assert len(counts) == 8
    assert min(counts.values()) >= 200
    assert sum(path.stat().st_size for path in (TASKS / "data").glob("*.parquet")) < 30e6


@pytest.mark.parametrize("folder", [WEIGHTS, LLAVA_WEIGHTS, CLIP_WEIGHTS], ids=lambda folder: folder.name)
def test_the_weights_are_plain_tensors_within_25_megabytes(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}
    assert {path.name for path in folder.rglob("*.safetensors")} == {"model.safetensors", "d2prior.safetensors"}
    assert (folder / "scorer" / "model.safetensors").is_file()
    assert sum(path.stat().st_size for path in files) < 25e6
