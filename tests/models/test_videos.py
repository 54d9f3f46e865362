"""Which frames of a video are shown: evenly spaced or at a rate, of a file, a list or an array, with their times."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from questions import LIMITS, ask, clip, picture
from qwen_vl_utils import fetch_video
from tiny_families import BUILDERS, tiny
from tiny_models import tiny_processor

import harness
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.models import resized_videos, videos
from harness.models.bad_input import BadInput
from harness.models.limits import FrameLimit, PixelLimits, limits_of
from harness.models.preprocessing import messages_digest, to_inputs, visual_digest

FAMILIES = sorted(BUILDERS.keys() - {"llava", "llava_next"})  # those that show videos
SPAN = {"llava_onevision": 1, "internvl": 1}  # frames of a step, else 2


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def rule(**settings):
    return FrameLimit(**{"max_frames": 768, **settings})


@pytest.mark.parametrize(
    ("settings", "total", "rate", "count"),
    [
        ({"max_frames": 32}, 5400, 30.0, 32),
        ({"max_frames": 7}, 5400, 30.0, 6),
        ({"max_frames": 32}, 5, 30.0, 4),
        ({"max_frames": 32}, 1, 30.0, 2),
        ({"fps": 2.0}, 5400, 30.0, 360),
        ({"fps": 2.0, "max_frames": 32}, 5400, 30.0, 32),
        ({"fps": 2.0}, 30, 30.0, 4),  # a second would be two frames, four are the least
        ({"fps": 2.0, "min_frames": 16}, 60, 30.0, 16),
        ({"fps": 2.0, "min_frames": 16}, 10, 30.0, 10),  # no frame is shown twice
        ({"fps": 60.0}, 300, 30.0, 300),
        ({"fps": 0.7}, 5400, 30.0, 126),  # 180 * 0.7 is 125.99999999999999
        ({"fps": 1.0}, 299, 29.97, 8),  # 9.98 seconds
    ],
)
def test_how_many_frames_are_shown(settings, total, rate, count):
    assert rule(**settings).count(total, rate) == count


@pytest.fixture(scope="module")
def three_minutes(tmp_path_factory):
    """A clip of three minutes, at a rate that no whole number is."""
    file, rate = tmp_path_factory.mktemp("clip") / "clip.mp4", Fraction(12000, 1001)
    clip(file, round(180 * rate), 56, 28, rate, "libx264")
    return str(file)


@torch.no_grad()
def test_three_minutes_at_two_frames_a_second_go_through_qwen(three_minutes, reader):
    model, processor = tiny("qwen2_5_vl")
    config = ModelConfig("tiny", "tiny", min_pixels=784, max_pixels=1568, max_frames=768, fps=2.0)
    shown = []
    inputs = to_inputs(processor, [ask(three_minutes)], limits_of(processor, config), shown=shown)
    assert inputs["video_grid_thw"].tolist() == [[180, 2, 4]]
    seconds = 180.013 / 180
    assert shown == [[{"frames": 360, "seconds_per_step": pytest.approx(seconds, rel=1e-3), "tokens": 360}]]
    assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(shown[0][0]["seconds_per_step"], rel=1e-6)
    with harness.prune(model, "uniform", keep=0.25) as pruning:
        logits = model(**inputs).logits
    assert logits.isfinite().all()
    assert pruning.records[0].grids == [(180, 1, 2)]
    assert (pruning.records[0].n, pruning.records[0].k) == (360, 90)


@pytest.mark.parametrize("fps", [None, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_rate_means_the_same_for_every_family(family, fps, tmp_path):
    """Frames and their distance are those of the rule, tokens those that the model sees."""
    model, processor = tiny(family)
    clip(tmp_path / "clip.mp4", 60, 112, 112, 10)  # six seconds
    limits = (LIMITS if hasattr(processor.image_processor, "merge_size") else FrameLimit(4)).__class__
    settings = {"min_pixels": 4 * 1024, "max_pixels": 64 * 1024} if limits is PixelLimits else {}
    shown = []
    conversations = [ask(str(tmp_path / "clip.mp4"))]
    inputs = to_inputs(processor, conversations, limits(**settings, max_frames=8, fps=fps), shown=shown)
    frames = 6 if fps else 8
    span = SPAN.get(family, getattr(processor.video_processor, "temporal_patch_size", 1))
    with harness.prune(model, "none", keep=1.0) as pruning:
        model(**inputs)
    seconds = pytest.approx(6 / frames * span)
    assert shown == [[{"frames": frames, "seconds_per_step": seconds, "tokens": pruning.records[0].n}]]
    steps = sum(t for t, _, _ in pruning.records[0].grids)
    assert steps == frames // span


@torch.no_grad()
def test_positions_in_time_are_those_of_the_record(processor, tmp_path):
    model, _ = tiny("qwen2_5_vl")
    clip(tmp_path / "clip.mp4", 60, 56, 56, 5)  # twelve seconds
    shown = []
    limits = PixelLimits(4 * 784, 64 * 784, max_frames=6, fps=1.0)
    inputs = to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], limits, shown=shown)
    asked = {name: inputs[name] for name in ("input_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")}
    if "mm_token_type_ids" in inputs:
        asked["mm_token_type_ids"] = inputs["mm_token_type_ids"]
    positions, _ = model.model.get_rope_index(**asked)
    times = positions[0][inputs["input_ids"] == processor.video_token_id].unique()
    assert shown[0][0]["seconds_per_step"] == pytest.approx(4.0)
    assert times.diff().tolist() == [4 * model.config.vision_config.tokens_per_second] * 2


def test_a_processor_that_tells_another_time_is_an_error(processor, tmp_path, monkeypatch):
    clip(tmp_path / "clip.mp4", 16)
    plain = type(processor).__call__
    changed = lambda self, **kwargs: plain(self, **kwargs) | {"second_per_grid_ts": [1.5]}  # noqa: E731
    monkeypatch.setattr(type(processor), "__call__", changed)
    with pytest.raises(RuntimeError, match=r"steps of videos are \[2.0\] seconds apart.*tells the model \[1.5\]"):
        to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], LIMITS)


class TestKinds:
    def test_a_list_and_an_array_of_frames_are_one_video(self, processor):
        frames = [picture(84, 56, seed) for seed in range(5)]
        arrays = [np.asarray(frame) for frame in frames]
        pixels = [
            to_inputs(processor, [[{"role": "user", "content": [{"type": "video", "url": media}]}]], LIMITS)
            for media in (frames, tuple(frames), arrays, np.stack(arrays))
        ]
        for other in pixels[1:]:
            assert other["pixel_values_videos"].equal(pixels[0]["pixel_values_videos"])

    @pytest.mark.parametrize(
        ("media", "message"),
        [
            (
                np.zeros((4, 3, 56, 56), np.uint8),
                r"an array of uint8 \[3, 56, 56\]: expected 8 bits, uint8 \[H, W, 3\]",
            ),
            (np.zeros((4, 56, 56, 3), np.float32), r"an array of float32 \[56, 56, 3\]"),
            (np.zeros((0, 56, 56, 3), np.uint8), "the video has no frame"),
            (np.array(None), "the video is ndarray: expected a file, a list of pictures or an array"),
            (torch.zeros(4, 56, 56, 3), "the video is Tensor: expected a file, a list of pictures or an array"),
            ("", "the video is '': expected a file"),
            (None, "the video is NoneType: expected a file"),
            ({"path": "a.mp4", "video_start": 3.0}, "the question shows a part of a video"),
            ([np.zeros((56, 56), np.uint8)], r"an array of uint8 \[56, 56\]"),
        ],
        ids=str,
    )
    def test_other_kinds_are_refused_in_a_line(self, processor, media, message):
        asked = [{"role": "user", "content": [{"type": "video", "url": media}]}]
        with pytest.raises(BadInput, match=message) as caught:
            to_inputs(processor, [asked], LIMITS)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("end", ["start_time", "end_time"])
    def test_a_part_of_a_video_is_refused(self, processor, tmp_path, end):
        clip(tmp_path / "clip.mp4", 8)
        part = {"type": "video", "url": str(tmp_path / "clip.mp4"), "start_time": None, "end_time": None, end: 1.0}
        with pytest.raises(BadInput, match="a part of a video, by start and end: only whole videos can be shown"):
            to_inputs(processor, [[{"role": "user", "content": [part]}]], LIMITS)

    def test_arrays_that_print_alike_have_other_digests(self):
        one = np.zeros((8, 56, 56, 3), np.uint8)
        other = one.copy()
        other[4, 28, 28] = 1
        assert repr(one) == repr(other)
        of = lambda array: [{"role": "user", "content": [{"type": "video", "url": array}]}]  # noqa: E731
        assert messages_digest(of(one)) != messages_digest(of(other))
        assert visual_digest(of(one)) != visual_digest(of(other))

    @pytest.mark.parametrize("limits", [PixelLimits(max_frames=8, fps=2.0), FrameLimit(8, 2.0)], ids=str)
    def test_a_rate_of_frames_without_times_is_the_users_mistake(self, processor, limits):
        with pytest.raises(UserError, match=r"model.fps=2 needs a video file, .* list of 5 frames .*model.fps=null"):
            to_inputs(processor, [ask([picture(84, 56)] * 5)], limits)


def test_a_file_that_does_not_say_its_rate_has_no_times(processor, tmp_path, reader, monkeypatch):
    clip(tmp_path / "clip.mp4", 8)
    plain = videos._checked_rate
    monkeypatch.setattr(videos, "_checked_rate", lambda rate, file: plain(float("nan"), file))
    with pytest.raises(BadInput, match=r"clip\.mp4 does not say how many frames make a second"):
        to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], LIMITS)


@pytest.mark.parametrize(
    ("error", "expected"), [("EOFError", BadInput), ("PatchWelcomeError", BadInput), ("OSError", OSError)]
)
def test_what_pyav_raises_about_a_file_fails_the_question_and_of_the_machine_the_run(
    error, expected, tmp_path, monkeypatch
):
    import av

    def damaged(file):
        raise getattr(av.error, error)(5, "as it is called")

    monkeypatch.setattr("harness.models.videos.find_spec", lambda name: None)
    monkeypatch.setattr(av, "open", damaged)
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(expected, match="as it is called"):
        videos.opened(str(tmp_path / "clip.mp4"))


def test_a_file_without_a_decoder_fails_the_question_and_not_the_process(tmp_path, reader):
    """PyAV opens a file that does not name its codec, and dies of a segmentation fault when it decodes it."""
    clip(tmp_path / "clip.mp4", 8)
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.count(b"stsd") == 1
    (tmp_path / "clip.mp4").write_bytes(data.replace(b"stsd", b"????"))
    with pytest.raises(BadInput, match=r"clip\.mp4 cannot be (decoded|opened)"):
        videos.opened(str(tmp_path / "clip.mp4"))


class TestDecoding:
    @pytest.fixture
    def file(self, tmp_path):
        """A clip whose frames depend on others before and after, in few groups."""
        import av

        file = str(tmp_path / "clip.mp4")
        with av.open(file, "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"g": "40", "bf": "3"})
            stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
            for number in range(90):
                image = picture(192, 128, 3)
                image.paste(Image.new("RGB", (40, 40), "red"), (number * 2, number))
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
            container.mux(stream.encode())
        return file

    @pytest.mark.parametrize("count", [2, 20, 90])
    def test_frames_are_the_bits_of_fetch_video(self, file, count):
        pytest.importorskip("decord")
        limits = PixelLimits(4 * 784, 20 * 784, count)
        frames, metadata, read = resized_videos.resized_video(file, limits, 14, 2)
        request = {"video": file, "nframes": count, **limits.of_frames(count, 14, 2)}
        expected, told = fetch_video(request, image_patch_size=14, return_video_metadata=True)
        assert torch.equal(frames, expected)
        assert metadata == {key: told[key] for key in metadata}
        assert read == count

    def test_few_frames_are_held_at_their_full_size(self, file, monkeypatch):
        decord = pytest.importorskip("decord")
        sizes, plain = [], decord.VideoReader.get_batch
        counted = lambda self, chosen: sizes.append(len(chosen)) or plain(self, chosen)  # noqa: E731
        monkeypatch.setattr(decord.VideoReader, "get_batch", counted)
        resized_videos.resized_video(file, PixelLimits(784, 4 * 784, 90), 14, 2)
        assert sum(sizes) == 90
        assert max(sizes) <= 8

    def test_frames_that_no_size_fits_are_refused(self, file, reader):
        with pytest.raises(BadInput, match="frames of 192 x 128 pixels are too long to be shown in 784 pixels"):
            resized_videos.resized_video(file, PixelLimits(784, 784, 4), 14, 2)

    def test_both_readers_show_the_same_frames(self, file, monkeypatch):
        pytest.importorskip("decord")
        chosen = [0, 1, 39, 40, 41, 77, 89]
        frames = [np.stack(list(map(np.asarray, videos.opened(file).read(chosen))))]
        monkeypatch.setattr("harness.models.videos.find_spec", lambda name: None)
        frames.append(np.stack(list(map(np.asarray, videos.opened(file).read(chosen)))))
        assert np.abs(frames[0].astype(int) - frames[1]).mean() < 2  # conversions to RGB differ
        assert [len(stack) for stack in frames] == [len(chosen)] * 2
