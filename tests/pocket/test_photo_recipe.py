"""How `pocket_photo` was trained: what its hand-set heads find in ideal visual tokens, and what its parts learn."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoProcessor

from harness.models.packed import from_packed
from harness.pocket.photo.questions import ask
from harness.pocket.photo.scenes import GRID, SIGN, Scene, draw
from harness.pocket.photo.words import THINGS
from harness.pocket.recipe import photo
from harness.pocket.recipe.batches import use_grouped_attention
from harness.pocket.recipe.photo_bank import Bank, make_bank, pixels_of
from harness.pocket.recipe.photo_export import IMAGE, write
from harness.pocket.recipe.photo_projector import Projector, probe_tokens, project, train_projector
from harness.pocket.recipe.photo_space import ASKED, NAMED, PLACE, corners, positions
from harness.pocket.recipe.photo_tower import CONFIG

FIRST = 3  # <|im_start|> user <|vision_start|>


def ideal(scene: Scene) -> torch.Tensor:
    """The visual tokens [256, D] that the projector is taught to write, but for the components of the tower."""
    tokens = torch.zeros(GRID * GRID, photo.WIDTH)
    shows = torch.from_numpy(scene.shows).long()
    things = torch.where(shows == SIGN, len(THINGS), torch.where(shows < 0, len(THINGS) + 1, shows))
    tokens[:, PLACE["things"]] = F.one_hot(things, len(THINGS) + 2)[:, :-1].float()
    tokens[:, PLACE["position"]] = 0.35 * positions()
    tokens[:, PLACE["corners"]] = 0.7 * F.one_hot(corners(), 4).float()
    tokens[:, PLACE["visual"]] = 0.5
    tokens[:, PLACE["components"].start] = 0.8
    return tokens


@pytest.fixture(scope="module")
def decoder():
    tokenizer = photo.photo_tokenizer()
    model = photo.build_decoder(tokenizer).eval()
    use_grouped_attention(model.model)
    model.config._attn_implementation = "packed_plain"
    return tokenizer, model


@torch.no_grad()
def states(decoder, scene, questions):
    tokenizer, model = decoder
    batch = photo.batch_of([(ideal(scene), questions, None)], tokenizer, model.get_input_embeddings())
    inputs = {name: batch[name] for name in ("inputs_embeds", "position_ids", "attention_mask")}
    return model.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states


def test_a_visual_token_and_the_word_for_it_point_the_same_way(decoder):
    tokenizer, model = decoder
    table = model.get_input_embeddings().weight
    tokens = torch.eye(photo.WIDTH)[PLACE["things"]]
    words = torch.stack([table[tokenizer.convert_tokens_to_ids(f"▁{name}")] for name in (*THINGS, "sign")])
    cosines = F.cosine_similarity(words[:, None], tokens[None], dim=-1)
    assert bool((cosines.diag() > 0.6).all())
    assert float((cosines - cosines.diag().diag()).abs().max()) < 1e-6
    assert set(ASKED) - set(NAMED) == {"left", "right", "above", "below"}


def test_the_first_layers_write_what_is_asked_where_the_answer_begins_and_nothing_of_the_picture(drawn_assets, decoder):
    one, other = (draw(np.random.default_rng(seed)) for seed in (1, 2))
    questions = [q for q in ask(one, np.random.default_rng(0)) if q.task == "existence"]
    ours, others = (states(decoder, scene, questions)[photo.READING][0, FIRST + 256 :] for scene in (one, other))
    changed = (ours - others).abs()
    changed[:, PLACE["first"]] = 0  # a word that stands 1 or 16 tokens behind one that shows it notes that
    assert float(changed.max()) < 1e-5
    answers = torch.cat([ours, others])[:, PLACE["things"]].amax(0)
    asked = [THINGS.index(q.text.removeprefix("Is there any ").removesuffix("?")) for q in questions]
    assert bool((answers[asked] > 0.6).all())


def test_visual_tokens_note_whether_they_are_the_first_of_their_thing(drawn_assets, decoder):
    right = []
    for seed in range(8):
        scene = draw(np.random.default_rng(seed))
        notes = states(decoder, scene, ask(scene, np.random.default_rng(0))[:1])[photo.READING]
        notes = notes[0, FIRST : FIRST + 256, PLACE["first"]].reshape(GRID, GRID, 2)
        shows = scene.shows.reshape(GRID, GRID)
        for row, column in zip(*np.nonzero(shows >= 0), strict=True):
            left, above = (shows[row, column - 1] if column else -1), (shows[row - 1, column] if row else -1)
            for note, before in zip(notes[row, column], (left, above), strict=True):
                right.append(bool(note < 0.2) == (before == shows[row, column]))
    assert np.mean(right) > 0.9, np.mean(right)


def test_a_word_finds_where_the_tokens_are_that_show_it(drawn_assets, decoder):
    tokenizer, _ = decoder
    away = []
    for seed in range(8):
        scene = draw(np.random.default_rng(seed))
        for question in (q for q in ask(scene, np.random.default_rng(0)) if q.task == "where"):
            read = states(decoder, scene, [question])[photo.READING + 1][0, FIRST + 256 + 1 :]
            tokens = tokenizer.convert_ids_to_tokens(tokenizer(question.text)["input_ids"])
            (at, name) = next((i, token[1:]) for i, token in enumerate(tokens) if token[1:] in THINGS)
            nearest = int((positions() @ read[at, PLACE["there"]]).argmax())
            shown = np.flatnonzero(scene.shows == THINGS.index(name))
            rows, columns = abs(shown // GRID - nearest // GRID), abs(shown % GRID - nearest % GRID)
            away.append(int(np.maximum(rows, columns).min()))
    assert len(away) > 8
    assert np.median(away) <= 1, away


def test_a_bank_is_drawn_once_and_a_projector_learns_from_it(drawn_assets, monkeypatch, tmp_path):
    monkeypatch.setattr("harness.pocket.recipe.photo_bank.PART", 6)
    colours = torch.randn(3 * 14 * 14, 384, generator=torch.Generator().manual_seed(0)) / 14

    def encode(tower, images):
        patches = F.unfold(pixels_of(images), 14, stride=14).transpose(1, 2)
        return (patches @ colours).half().numpy()

    monkeypatch.setattr("harness.pocket.recipe.photo_bank.encode", encode)
    bank: Bank = make_bank(None, tmp_path, "train", 5, range(4))
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = make_bank(None, tmp_path, "train", 5, range(4))
    assert written == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert again.questions == bank.questions
    assert len(bank) == 24
    few, many = (probe_tokens(project(train_projector(bank, steps), bank), bank) for steps in (1, 120))
    assert many["things"] + many["background"] > few["things"] + few["background"] + 0.2


def test_the_parts_become_a_stock_llava_that_answers_as_they_do(drawn_assets, decoder, tmp_path):
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    from harness.models.int8 import quantised

    tokenizer, model = decoder
    torch.manual_seed(0)
    tower = Dinov2Model(Dinov2Config(**CONFIG))
    names = {".q_proj": ".attention.query", ".k_proj": ".attention.key", ".v_proj": ".attention.value"}
    names |= {".attention.o_proj": ".attention.output.dense"}
    stored = {}
    for name, tensor in tower.state_dict().items():  # by the names of the Hub
        for new, old in names.items():
            name = name.replace(new, old)
        stored[name] = tensor
    save_file(quantised(stored), tmp_path / "tower.safetensors")
    projector = Projector().eval()
    write(tmp_path / "weights", model, projector, tokenizer, tmp_path / "tower.safetensors")

    whole = from_packed(tmp_path / "weights", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "weights")
    scene = draw(np.random.default_rng(3))
    question = ask(scene, np.random.default_rng(0))[0]
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[scene.image], text=[prompt], return_tensors="pt")
    assert int((inputs["input_ids"] == tokenizer.convert_tokens_to_ids(IMAGE)).sum()) == 256
    assert torch.allclose(inputs["pixel_values"], pixels_of([scene.image]), atol=1e-5)
    with torch.no_grad():
        logits = whole(**inputs).logits[0, -1]
        features = whole.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[8][:, 1:]
        batch = photo.batch_of([(projector(features)[0], [question], None)], tokenizer, model.get_input_embeddings())
        expected, _, _ = photo.answers(model, batch)
    assert F.cosine_similarity(logits, expected[0], dim=0) > 0.999  # float16 weights, bfloat16 products
