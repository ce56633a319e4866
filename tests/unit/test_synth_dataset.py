"""The data set on disk: DiffSynth reads it, splits do not overlap, a second run draws nothing."""

import csv

import numpy as np
import pytest
from diffsynth.core import UnifiedDataset

from sakuga.errors import GeometryError, InputError, OutputError
from sakuga.synth import make_sample
from sakuga.synth.dataset import is_test_seed, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dancers")
    calls = []
    summary = write_dataset(
        folder, num_groups=2, first_seed=8, num_frames=9, on_sample=lambda done, total: calls.append((done, total))
    )
    return folder, summary, calls


def test_groups_are_split_by_seed(dataset):
    folder, summary, calls = dataset
    assert (summary.num_train, summary.num_test, summary.num_drawn) == (2, 2, 4)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    seeds = {}
    for split in ("train", "test"):
        with (folder / split / "metadata.csv").open() as file:
            seeds[split] = {int(row["seed"]) for row in csv.DictReader(file)}
    assert seeds == {"train": {8}, "test": {9}}
    assert sum(is_test_seed(seed) for seed in range(5000)) == 500


def test_diffsynth_reads_it(dataset):
    folder = dataset[0] / "train"
    operator = UnifiedDataset.default_video_operator(base_path=str(folder), height=128, width=128, num_frames=9)
    keys = ("video", "control_video", "vace_video", "vace_video_mask", "input_image")
    rows = UnifiedDataset(str(folder), str(folder / "metadata.csv"), data_file_keys=keys, main_data_operator=operator)
    row = rows[0]
    assert len(row["video"]) == len(row["control_video"]) == 9
    target = make_sample(8, "live", num_frames=9)
    assert row["prompt"] == target.prompt
    error = np.abs(np.asarray(row["video"][4]).astype(int) - target.video_THWC[4]).mean()
    assert error < 4, "the mp4 is not the sample"
    layers = np.load(folder / rows[0]["layers"])["layers_THW"]
    assert np.array_equal(layers, target.layers_THW)


def test_a_second_run_draws_nothing_and_a_lost_file_is_drawn_again(dataset):
    folder = dataset[0]
    before = (folder / "train" / "metadata.csv").read_bytes()
    assert write_dataset(folder, num_groups=2, first_seed=8, num_frames=9).num_drawn == 0
    (folder / "test" / "000009_live" / "control.mp4").unlink()
    (folder / "test" / "000009_fairy" / "prompt.txt").unlink()
    assert write_dataset(folder, num_groups=2, first_seed=8, num_frames=9).num_drawn == 2
    assert (folder / "train" / "metadata.csv").read_bytes() == before


@pytest.mark.parametrize("other", [{"width": 64}, {"height": 64}, {"num_frames": 5}, {"fps": 30}])
def test_samples_of_other_settings_are_not_kept_silently(dataset, other):
    folder = dataset[0]
    [(name, value)] = other.items()
    with pytest.raises(InputError, match=f"{name} .*, not {value}; take another folder"):
        write_dataset(folder, num_groups=2, first_seed=8, **{"num_frames": 9, **other})


def test_a_folder_whose_settings_are_unknown_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text('{"width": 1')
    with pytest.raises(InputError, match="damaged"):
        write_dataset(tmp_path, num_groups=1)
    (tmp_path / "settings.json").unlink()
    (tmp_path / "train" / "000000_live").mkdir(parents=True)
    (tmp_path / "train" / "000000_live" / "video.mp4").write_bytes(b"of another version")
    with pytest.raises(InputError, match=r"no settings\.json"):
        write_dataset(tmp_path, num_groups=1)


@pytest.mark.parametrize(
    "size", [{"width": 30}, {"height": 33}, {"width": 0}, {"num_frames": 0}, {"fps": 0}, {"fps": -15}]
)
def test_what_cannot_be_drawn_is_refused_before_the_folder_is_made(size, tmp_path):
    with pytest.raises(GeometryError, match="cannot be drawn"):
        write_dataset(tmp_path / "out", num_groups=1, **size)
    assert not (tmp_path / "out").exists()


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(InputError, match="small"):
        write_dataset(tmp_path, "smal")
    with pytest.raises(InputError, match="at least 1"):
        write_dataset(tmp_path, num_groups=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        write_dataset(tmp_path / "file", num_groups=1)
