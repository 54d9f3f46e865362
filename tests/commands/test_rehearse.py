"""scripts/rehearse.py at a tiny size: its folder loads as a released one, and the main job proves its decoding."""

import json
from itertools import chain, product

import pytest
import torch
from doc_guides import ROOT
from printed import rows_below
from safetensors import safe_open
from script_modules import script as load
from tokenizers import Tokenizer, models
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast

TEXT = "Hello  world, 12 Bäume! naïve\n"


@pytest.fixture(scope="module")
def rehearse():
    return load("rehearse")


@pytest.fixture(scope="module")
def ranks():
    """A vocabulary of the same form and size: bytes, then tokens that are joined from earlier ones."""
    found = {bytes([byte]): byte for byte in range(256)}
    for token in (b"he", b"ll", b"hell", b"hello", b" w", b" wo", b" world"[:4], b"in"):
        found[token] = len(found)
    pairs = [bytes(pair) for pair in product(range(128, 256), range(128, 256))]
    for token in chain(pairs, (pair + bytes([byte]) for pair, byte in product(pairs, range(128, 256)))):
        if len(found) == 151_643:
            break
        found.setdefault(token, len(found))
    return found


@pytest.fixture(scope="module")
def place(rehearse, ranks, tmp_path_factory):
    rehearse.SHARD, before = 4_000_000, rehearse.SHARD
    place = tmp_path_factory.mktemp("rehearsal") / "qwen25vl3b"
    rehearse.write_checkpoint(place, "qwen25vl3b", ranks, tiny=True)
    rehearse.SHARD = before
    return place


def test_the_tokenizer_is_the_vocabulary_it_was_made_from(place, ranks):
    tokenizer = AutoTokenizer.from_pretrained(place)
    for text in (TEXT, "hello world within"):
        numbers = tokenizer(text)["input_ids"]
        assert tokenizer.decode(numbers) == text
    spelled = {number: token for token, number in ranks.items()}
    assert [spelled[number] for number in tokenizer("hello wo")["input_ids"]] == [b"hello", b" wo"]
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151_655


def test_every_token_is_joined_from_earlier_ones(rehearse, ranks):
    pairs = dict(zip([token for token in ranks if len(token) > 1], rehearse.merges(ranks), strict=True))
    assert all(a + b == token and max(ranks[a], ranks[b]) < ranks[token] for token, (a, b) in pairs.items())
    assert pairs[b"hell"] == (b"he", b"ll")


def test_the_weights_are_shards_that_load_without_a_missing_name(place):
    index = json.loads((place / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    for file in files:
        with safe_open(place / file, "pt") as shard:
            assert {shard.get_tensor(name).dtype for name in shard.keys()} == {torch.bfloat16}  # noqa: SIM118
    _, said = AutoModelForImageTextToText.from_pretrained(place, dtype=torch.bfloat16, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]


@pytest.fixture(scope="module")
def llava(rehearse, tmp_path_factory):
    """As `place`, with a vocabulary of Llama's size."""
    pieces = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *map(chr, range(0x4E00, 0xCAFD))])}
    tokenizer = Tokenizer(models.BPE(pieces, [], unk_token="<unk>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    place = tmp_path_factory.mktemp("rehearsal") / "llava15_7b"
    rehearse.write_checkpoint(place, "llava15_7b", fast, tiny=True)
    return place


def test_llava_gets_its_two_further_tokens_where_the_released_one_has_them(llava):
    tokenizer = AutoTokenizer.from_pretrained(llava)
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [32_000, 32_001]
    (message,) = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert prompt == "USER: <image>\nWhat is it? ASSISTANT:"


@pytest.mark.parametrize("folder", ["place", "llava"])
def test_the_main_job_runs_on_it_and_proves_its_decoding(rehearse, folder, request):
    place = request.getfixturevalue(folder)
    tasks = rehearse.write_benchmarks(place.parent / "tasks", 1, (256, 192))
    found = rehearse.run(place, place.name, tasks, 0.25, 1)
    assert {"idpruner 0.25", "none 1.0"} <= set(found)
    for run in (found["idpruner 0.25"], found["none 1.0"]):
        assert run["decoding"]["verified"]
        assert run["seconds"]["llm"] > 0
    assert found["peak_gb"] > 0.5


def test_the_guide_shows_what_came_out():
    head, *rows = rows_below(ROOT / "docs" / "rehearsal.md", "minutes in all")
    assert len(rows) == 3
    for row in rows:
        name = row[0].partition("]")[0].strip("[")
        found = json.loads((ROOT / "results" / "rehearsal" / f"{name}.json").read_text())
        whole, pruned = (found[run]["seconds"] for run in ("none 1.0", "idpruner 0.25"))
        seconds = [whole["vision"], whole["llm"], pruned["llm"], whole["verify"], pruned["verify"]]
        shown = [str(found["minutes"]), str(found["peak_gb"]), *(f"{number:.0f}" for number in seconds)]
        assert row[head.index("minutes in all") :] == shown
        assert all(found[run]["decoding"]["proof"]["largest"] <= 0.0345 for run in ("none 1.0", "idpruner 0.25"))
