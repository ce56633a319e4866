"""The dancers: deterministic, the same in both worlds, and told apart by what their prompts say."""

import numpy as np
import pytest

from sakuga.errors import GeometryError, InputError
from sakuga.synth import DANCES, HAIR_COLOURS, HELD_OUT_SEED, OUTFIT_COLOURS, make_sample
from sakuga.synth.choreography import AMPLITUDES, SIDES, TEMPOS_HZ, Choreography, pose_at
from sakuga.synth.figure import HAIR_SHAPES
from sakuga.synth.paint import _INK


@pytest.mark.parametrize("world", ["live", "fairy"])
def test_a_seed_is_a_sample(world):
    first, second = make_sample(11, world, num_frames=5), make_sample(11, world, num_frames=5)
    other = make_sample(12, world, num_frames=5)
    assert np.array_equal(first.video_THWC, second.video_THWC)
    assert first.prompts == second.prompts
    assert not np.array_equal(first.video_THWC, other.video_THWC)


def test_both_worlds_share_figure_dance_and_first_frame():
    live, fairy = make_sample(5, "live"), make_sample(5, "fairy")
    assert (live.figure, live.choreography) == (fairy.figure, fairy.choreography)
    assert np.array_equal(live.video_THWC[0], fairy.video_THWC[0])
    assert np.array_equal(live.control_video_THWC, fairy.control_video_THWC)
    # Nine frames later she has turned, over most of the picture.
    changed = np.abs(live.video_THWC[9].astype(int) - fairy.video_THWC[9]).max(-1) > 12
    assert changed.mean() > 0.5


def test_a_photo_can_be_the_start():
    photo = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    sample = make_sample(5, "fairy", photo_HWC=photo)
    assert np.array_equal(sample.input_image_HWC, photo)
    assert np.array_equal(sample.video_THWC[20], make_sample(5, "fairy").video_THWC[20])


@pytest.mark.parametrize("width, height, num_frames", [(128, 128, 33), (96, 160, 17), (160, 96, 5), (256, 256, 1)])
def test_shapes_and_masks(width, height, num_frames):
    sample = make_sample(3, "fairy", width=width, height=height, num_frames=num_frames)
    frame_shape = (num_frames, height, width)
    assert sample.video_THWC.shape == sample.control_video_THWC.shape == (*frame_shape, 3)
    assert sample.layers_THW.shape == sample.vace_mask_THW.shape == frame_shape
    assert set(np.unique(sample.layers_THW)) <= {0, 1, 2, 3, 4}
    assert np.array_equal(sample.figure_mask_THW, sample.layers_THW > 0)
    # What the model has to fill in covers the dancer, and nothing of the dancer is left in the VACE video.
    assert np.all(sample.vace_mask_THW[sample.figure_mask_THW] == 255)
    assert np.all(sample.vace_video_THWC[sample.figure_mask_THW] == 128)
    share = sample.figure_mask_THW.mean()
    assert 0.03 < share < 0.5


def test_prompt_names_what_is_seen():
    for seed in range(40):
        sample = make_sample(seed, "live", num_frames=1)
        for prompt in sample.prompts:
            text = prompt.lower()
            assert sample.figure.hair_colour in text
            assert f"{sample.figure.outfit_colour} {sample.figure.outfit}" in text
            assert sample.choreography.dance.split()[-1] in text
            assert sample.choreography.tempo in text
            assert sample.choreography.side in text


def test_palettes_and_repertoire_are_wide_enough():
    assert len(HAIR_COLOURS) >= 8
    assert len(OUTFIT_COLOURS) >= 8
    assert len(DANCES) >= 6
    seen = {(s.figure.hair_shape, s.choreography.dance) for s in (make_sample(i, num_frames=1) for i in range(300))}
    assert len(seen) == len(HAIR_SHAPES) * len(DANCES)


def test_every_choreography_moves_in_its_own_way():
    """No two choreographies share their joint angles, so a prompt fixes the motion."""
    times = np.arange(33) / 15
    curves = {}
    for dance in DANCES:
        for tempo in TEMPOS_HZ:
            for amplitude in AMPLITUDES:
                for side in SIDES:
                    pose = pose_at(Choreography(dance=dance, tempo=tempo, amplitude=amplitude, side=side), times)
                    values = [np.broadcast_to(getattr(pose, name), times.shape) for name in pose.__dataclass_fields__]
                    curves[dance, tempo, amplitude, side] = np.stack(values)
    names = list(curves)
    for i, a in enumerate(names):
        assert np.abs(np.diff(curves[a], axis=1)).max() > 0.02, f"{a} stands still"
        for b in names[i + 1 :]:
            assert np.abs(curves[a] - curves[b]).max() > 0.05, f"{a} and {b} look alike"


def test_motion_is_smooth():
    """No joint jumps: at 60 frames a second nothing turns by more than a third of a radian a frame."""
    times = np.arange(240) / 60
    for dance in DANCES:
        pose = pose_at(Choreography(dance=dance, tempo="quick", amplitude="boldly", side="left"), times)
        for name in pose.__dataclass_fields__:
            assert np.abs(np.diff(np.broadcast_to(getattr(pose, name), times.shape))).max() < 0.34, (dance, name)


def test_named_colours_are_on_the_picture():
    """The median of her hair and clothes is nearest to the colour that the prompt names, in both worlds."""
    for world in ("live", "fairy"):
        hits = 0
        for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 24):
            sample = make_sample(seed, world, num_frames=12)
            frame, layers = sample.video_THWC[-1], sample.layers_THW[-1]
            for layer, palette, name in (
                (3, HAIR_COLOURS, sample.figure.hair_colour),
                (2, OUTFIT_COLOURS, sample.figure.outfit_colour),
            ):
                pixels = frame[layers == layer].astype(int)
                # Ink is no colour of hers: contours are drawn in her layers, too.
                pixels = pixels[np.abs(pixels - _INK).sum(1) > 60] if world == "fairy" else pixels
                median = np.median(pixels, axis=0)
                nearest = min(palette, key=lambda c: np.abs(median - palette[c]).sum())
                hits += nearest == name
        assert hits >= 44, f"{hits} of 48 in {world}"


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 0, "world": "sea"}])
def test_impossible_seeds_and_worlds_are_refused(arguments):
    with pytest.raises(InputError):
        make_sample(**arguments)


def test_too_small_pictures_are_refused():
    with pytest.raises(GeometryError, match="32x32"):
        make_sample(0, width=16, height=16)
