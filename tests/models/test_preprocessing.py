"""Images and frames reach the model at the size that the limits say, resized once; digests see every change."""

import numpy as np
import pytest
from questions import LIMITS, ask, clip, picture
from tiny_llavaov15 import llavaov15_processor
from tiny_models import tiny_processor

from harness.models.bad_input import BadInput
from harness.models.limits import FRAME_TOKENS, VIDEO_TOKENS, PixelLimits
from harness.models.preprocessing import messages_digest, to_inputs, visual_digest


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.mark.parametrize(
    ("size", "grid"),
    [((56, 56), (4, 4)), ((84, 140), (10, 6)), ((60, 90), (6, 4)), ((28, 28), (4, 4)), ((2000, 1000), (10, 22))],
)
def test_images_take_the_size_of_the_limits(processor, size, grid):
    inputs = to_inputs(processor, [ask(picture(*size))], LIMITS)
    assert tuple(inputs["image_grid_thw"][0].tolist()) == (1, *grid)


def test_an_image_that_fits_is_not_resampled(processor):
    image = picture(84, 56)
    ours = to_inputs(processor, [ask(image)], LIMITS)
    plain = processor.image_processor(images=[image], do_resize=False, return_tensors="pt")
    assert ours["pixel_values"].equal(plain["pixel_values"])


def test_batches_are_padded_on_the_left(processor):
    inputs = to_inputs(processor, [ask(picture(56, 56)), ask(picture(112, 112), text="and a longer one?")], LIMITS)
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]


@pytest.mark.parametrize(("frames", "patches"), [(1, 1), (2, 1), (3, 2), (4, 2), (9, 2)])
def test_a_list_of_frames_is_a_video_of_two_frames_a_second(processor, frames, patches):
    inputs = to_inputs(processor, [ask([picture(84, 56, seed=i) for i in range(frames)])], LIMITS)
    assert inputs["video_grid_thw"].tolist() == [[patches, 4, 6]]
    assert [float(seconds) for seconds in inputs["second_per_grid_ts"]] == [1.0]


def test_frames_that_fit_are_not_resampled(processor):
    frames = [picture(84, 56, seed=i) for i in range(2)]
    ours = to_inputs(processor, [ask(frames)], LIMITS)["pixel_values_videos"]
    still = to_inputs(processor, [ask(frames[0])], LIMITS)["pixel_values"]
    # A patch is [channel, frame, 14 x 14]; an image repeats its only frame.
    assert ours.view(-1, 3, 2, 196)[:, :, 0].allclose(still.view(-1, 3, 2, 196)[:, :, 0], atol=1e-6)


def test_a_video_file_is_read_with_at_most_max_frames(processor, tmp_path, reader):
    images = clip(tmp_path / "clip.mp4", 8)
    inputs = to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], LIMITS)
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 4]]
    assert [float(seconds) for seconds in inputs["second_per_grid_ts"]] == [1.0]  # 4 of 8 frames at 4 a second
    shown = to_inputs(processor, [ask([images[i] for i in (0, 2, 5, 7)])], LIMITS)
    assert inputs["pixel_values_videos"].allclose(shown["pixel_values_videos"], atol=0.2)  # as far as mpeg4 is lossy


def test_a_video_of_one_frame_shows_it_twice(processor, tmp_path, reader):
    (image,) = clip(tmp_path / "clip.mp4", 1)
    inputs = to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], LIMITS)
    shown = to_inputs(processor, [ask([image])], LIMITS)
    assert inputs["video_grid_thw"].tolist() == shown["video_grid_thw"].tolist() == [[1, 4, 4]]
    assert inputs["pixel_values_videos"].allclose(shown["pixel_values_videos"], atol=0.2)


def test_what_is_no_video_is_told_from_what_is_not_there(processor, tmp_path, reader):
    file = tmp_path / "clip.mp4"
    with pytest.raises(FileNotFoundError):
        to_inputs(processor, [ask(str(file))], LIMITS)
    file.write_bytes(bytes(range(200)))
    with pytest.raises(BadInput, match=r"^clip\.mp4 cannot be (opened as a video|decoded: Invalid data)"):
        to_inputs(processor, [ask(str(file))], LIMITS)
    with pytest.raises(BadInput, match="the video has no frame"):
        to_inputs(processor, [ask([])], LIMITS)


def test_sound_alone_is_no_video(processor, tmp_path, reader):
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "float32"), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadInput, match=r"clip\.mp4 (cannot be opened as a video|has no frame)"):
        to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], LIMITS)


@pytest.mark.parametrize("make", [tiny_processor, llavaov15_processor])
def test_frames_of_files_and_of_lists_have_one_cap(make, tmp_path, reader):
    processor = make()
    images = clip(tmp_path / "clip.mp4", 4, 1120, 840)
    generous = PixelLimits(min_pixels=4 * 784, max_pixels=2000 * 784, max_frames=4)
    grids = [
        to_inputs(processor, [ask(media)], generous)["video_grid_thw"].tolist()
        for media in (images, str(tmp_path / "clip.mp4"))
    ]
    assert grids[0] == grids[1]
    assert grids[0][0][1] * grids[0][0][2] // 4 <= FRAME_TOKENS < 40 * 30


@pytest.mark.parametrize("length", [100, 128000])
def test_the_cap_does_not_depend_on_the_environment(processor, tmp_path, monkeypatch, length):
    clip(tmp_path / "clip.mp4", 4, 280, 280)
    monkeypatch.setattr("qwen_vl_utils.vision_process.MODEL_SEQ_LEN", length)
    limits = PixelLimits(min_pixels=4 * 784, max_pixels=2000 * 784, max_frames=4)
    assert to_inputs(processor, [ask(str(tmp_path / "clip.mp4"))], limits)["video_grid_thw"].tolist() == [[2, 20, 20]]


def test_a_long_video_has_a_cap_on_all_its_tokens():
    limits = PixelLimits(min_pixels=4 * 784, max_pixels=2000 * 784, max_frames=2000)
    assert limits.of_frames(2000, 14, 2)["max_pixels"] * 1000 == VIDEO_TOKENS * 784
    wanted = limits.of_frames(1000, 14, 1)
    assert wanted["max_pixels"] * 1000 == VIDEO_TOKENS * 784
    assert wanted["total_pixels"] / 1000 * 2 == wanted["max_pixels"]  # as fetch_video computes it
    assert limits.of_frames(4, 14, 2)["max_pixels"] == FRAME_TOKENS * 784
    assert PixelLimits(784, 10 * 784, 4).of_frames(4, 14, 2)["max_pixels"] == 10 * 784


def test_images_and_videos_in_one_batch(processor):
    inputs = to_inputs(processor, [ask(picture(56, 56), picture(84, 84)), ask([picture(56, 56)] * 2)], LIMITS)
    assert len(inputs["image_grid_thw"]) == 2
    assert len(inputs["video_grid_thw"]) == 1


def test_sound_is_refused(processor):
    with pytest.raises(BadInput, match="the question has audio, the model takes images and videos"):
        to_inputs(processor, [[{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}]], LIMITS)


def test_the_digest_sees_text_pixels_order_and_role():
    one, other = picture(56, 56), picture(56, 56, seed=1)
    system = [{"role": "system", "content": [{"type": "text", "text": "what?"}]}]
    variants = [
        ask(one, other),
        ask(other, one),
        ask(one, other, text="why?"),
        ask(one),
        ask([one, other]),
        ask(one.convert("L"), other),
        system + ask(one, other),
    ]
    assert len({messages_digest(messages) for messages in variants}) == len(variants)
    assert messages_digest(ask(picture(56, 56), picture(56, 56, seed=1))) == messages_digest(variants[0])


def test_questions_about_the_same_pictures_share_their_visual_digest():
    one, other = picture(56, 56), picture(56, 56, seed=1)
    assert visual_digest(ask(one, text="what?")) == visual_digest(ask(picture(56, 56), text="why?"))
    assert len({visual_digest(ask(*pictures)) for pictures in ([one], [other], [one, other], [other, one])}) == 4
    assert visual_digest([{"role": "user", "content": [{"type": "text", "text": "what?"}]}]) is None
