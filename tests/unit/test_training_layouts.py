"""What is found in folders and metadata files, and what is said of that which cannot be used."""

import json

import pytest

from sakuga.errors import DataError
from sakuga.training.layouts import read_data, split_of


@pytest.fixture
def folder(tmp_path):
    """`folder("a.mp4", "a.txt=she dances")` makes files; their content does not matter here."""

    def make(*files: str):
        for text in files:
            name, _, content = text.partition("=")
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return make


def reasons(data) -> dict[str, str]:
    return {entry.name: entry.reason for entry in data.rejections}


def test_csv_with_the_columns_of_diffsynth(folder):
    data = read_data(
        folder(
            "v/a.mp4", "first.png", "last.png", "pose.mp4", "vace.mp4", "mask.mp4", "layers.npz",
            "metadata.csv=video,prompt,input_image,end_image,control_video,vace_video,vace_video_mask,layers,seed\n"
            'v/a.mp4,"she, dances",first.png,last.png,pose.mp4,vace.mp4,mask.mp4,layers.npz,7\n',
        )
    )  # fmt: skip
    (sample,) = data.samples
    assert (sample.name, sample.prompt, sample.seed, sample.split) == ("v/a.mp4", "she, dances", 7, None)
    assert {role: path.name for role, path in sample.images.items()} == {
        "input_image": "first.png",
        "end_image": "last.png",
    }
    assert {role: path.name for role, path in sample.videos.items()} == {
        "control_video": "pose.mp4",
        "vace_video": "vace.mp4",
        "vace_mask": "mask.mp4",
    }
    assert sample.layers is not None and not sample.is_picture


def test_json_jsonl_and_pictures(folder):
    rows = [
        {"image": "a.png", "prompt": "a star"},
        {"video": "b.mp4", "prompt": "a dance", "reference_image": ["a.png"]},
    ]
    home = folder("a.png", "b.mp4", f"metadata.json={json.dumps(rows)}")
    from_json = read_data(home)
    lines = home / "other.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert read_data(lines) == from_json
    assert [sample.is_picture for sample in from_json.samples] == [True, False]
    assert from_json.samples[1].images["reference_image"].name == "a.png"


def test_split_folders_keep_their_split_and_filter_by_columns(folder):
    table = "video,prompt,world\na.mp4,x,live\nb.mp4,x,fairy\n"
    home = folder(*(f"{split}/{name}" for split in ("train", "test") for name in ("a.mp4", "b.mp4")),
                  f"train/metadata.csv={table}", f"test/metadata.csv={table}")  # fmt: skip
    data = read_data(home, where={"world": "fairy"})
    assert [(sample.name, sample.split) for sample in data.samples] == [
        ("train/b.mp4", "train"),
        ("test/b.mp4", "test"),
    ]
    assert data.num_left_out == 2
    with pytest.raises(DataError, match="no column 'wrld'; did you mean 'world'"):
        read_data(home, where={"wrld": "fairy"})


def test_captions_beside_files(folder):
    home = folder("a.mp4", "a.txt=she dances\n", "sub/b.png", "sub/b.txt=a star", "c.mp4", ".hidden/d.mp4", "readme.md")
    data = read_data(home)
    assert [(sample.name, sample.prompt) for sample in data.samples] == [
        ("a.mp4", "she dances"),
        ("sub/b.png", "a star"),
    ]
    assert "write c.txt beside it" in reasons(data)["c.mp4"]
    with_prompt = read_data(home, prompt="in the style of glass")
    assert {sample.name: sample.prompt for sample in with_prompt.samples}["c.mp4"] == "in the style of glass"
    with pytest.raises(DataError, match="no columns to filter by"):
        read_data(home, where={"world": "fairy"})


def test_captions_that_are_empty_or_utf_16(folder):
    home = folder("empty.mp4", "empty.txt= \n", "bom.mp4", "bare.mp4", "latin.mp4")
    (home / "bom.txt").write_bytes("Fée".encode("utf-16"))
    (home / "bare.txt").write_bytes("she dances".encode("utf-16-le"))
    (home / "latin.txt").write_bytes("Fée".encode("latin-1"))
    data = read_data(home)
    assert [(sample.prompt, sample.notes) for sample in data.samples] == [("Fée", ("bom.txt is UTF-16, read as such",))]
    said = reasons(data)
    assert "caption is empty" in said["empty.mp4"]
    assert "looks like UTF-16 without a byte order mark" in said["bare.mp4"]
    assert "not UTF-8; save it as UTF-8" in said["latin.mp4"]


def test_utf_16_metadata_is_read(folder):
    home = folder("a.mp4")
    (home / "metadata.csv").write_bytes("video,prompt\na.mp4,Fée\n".encode("utf-16"))
    assert read_data(home).samples[0].prompt == "Fée"


def test_rows_that_cannot_be_used(folder):
    home = folder(
        "a.mp4", "b.gif",
        "metadata.csv=video,prompt,input_image,seed\na.mp4,one,,\na.mp4,two,,\ngone.mp4,x,,\n,x,,\nb.gif,x,,\n"
        "./a.mp4,,,\n../a.mp4,x,a.jpg,\na.mp4,x,gone.png,\n",
    )  # fmt: skip
    data = read_data(home)
    assert [sample.prompt for sample in data.samples] == ["one"]
    said = [entry.reason for entry in data.rejections]
    for words in (
        "duplicate name: 'a.mp4'", "video 'gone.mp4' does not exist", "names no file", "no video or picture",
        "caption is empty", "'../a.mp4' does not exist", "input_image 'gone.png' does not exist",
    ):  # fmt: skip
        assert sum(words in reason for reason in said) == 1, (words, said)


def test_two_files_of_one_name_beside_captions(folder):
    data = read_data(folder("a.mp4", "a.png", "a.txt=x"))
    assert [sample.name for sample in data.samples] == ["a.mp4"]
    assert "duplicate name: 'a.mp4'" in reasons(data)["a.png"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["readme.md"], "neither metadata.csv"),
        (["metadata.csv=a", "metadata.json=[]"], "more than one metadata file"),
        (["metadata.json={"], "cannot be read"),
        (["metadata.jsonl=[1]"], "one object a sample"),
        (['metadata.csv=video,prompt\n"a,x\n'], "cannot be read"),
    ],
)
def test_data_that_cannot_be_read(folder, files, words):
    with pytest.raises(DataError, match=words):
        read_data(folder(*files))


def test_no_data(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_data(tmp_path / "none")


def test_split_follows_from_the_content():
    contents = [f"{number:08x}" + "0" * 56 for number in range(1000)]
    splits = split_of(contents)
    assert splits.count("test") == 100
    assert split_of(contents[::-1]) == splits[::-1]
    # Few files: each side has one, and equal contents stay together.
    assert split_of([contents[1], contents[2], contents[2]]) == ["train", "test", "test"]
    assert split_of([contents[9], contents[19]]) == ["train", "test"]
    assert split_of([contents[1]]) == ["train"]
    assert split_of([]) == []
