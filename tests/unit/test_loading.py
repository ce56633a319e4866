"""Weights: both folder layouts, one sentence for all that is missing, damaged files named, the right model checked."""

import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from sakuga.errors import WeightsError
from sakuga.storage import LocalFolder
from sakuga.wan import mini
from sakuga.wan.catalogue import card
from sakuga.wan.loading import _check_is_card, load_model, locate, stdout_to_log
from sakuga.wan.weights import check_safetensors, file_sha256, find_parts, missing_shards
from tiny_wan import tiny_i2v, tiny_t2v


@pytest.fixture(scope="module")
def mini_folder(tmp_path_factory):
    return mini.random_weights(tmp_path_factory.mktemp("weights") / "mini", seed=5)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


T2V_FILES = ("diffusion_pytorch_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth")


def test_missing_files_are_named_in_one_sentence(tmp_path):
    touch(tmp_path, "Wan2.1_VAE.pth")
    with pytest.raises(WeightsError) as caught:
        find_parts(card("wan2.1-t2v-1.3b"), LocalFolder(tmp_path))
    message = caught.value.message
    for name in ("diffusion_pytorch_model*.safetensors", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/"):
        assert name in message
    assert "Wan2.1_VAE" not in message
    assert "sakuga models fetch wan2.1-t2v-1.3b" in message


@pytest.mark.parametrize("prefix", ["", "Wan-AI/Wan2.1-T2V-1.3B/"])
def test_both_layouts_are_found(prefix, tmp_path):
    touch(tmp_path, *(prefix + name for name in T2V_FILES), prefix + "google/umt5-xxl/tokenizer.json")
    parts = {part.file.part: part for part in find_parts(card("wan2.1-t2v-1.3b"), LocalFolder(tmp_path))}
    assert parts["dit"].paths == (tmp_path / (prefix + T2V_FILES[0]),)
    assert set(parts) == {"dit", "text_encoder", "vae", "tokenizer"}


def test_files_that_diffsynth_converted_are_found_in_their_own_repository(tmp_path):
    converted = "DiffSynth-Studio/Wan-Series-Converted-Safetensors/"
    touch(
        tmp_path,
        "Wan-AI/Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors",
        "Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl/tokenizer.json",
        converted + "models_t5_umt5-xxl-enc-bf16.safetensors",
        converted + "Wan2.1_VAE.safetensors",
    )
    parts = {part.file.part: part for part in find_parts(card("wan2.1-t2v-1.3b"), LocalFolder(tmp_path))}
    assert parts["vae"].paths[0].suffix == ".safetensors"


def test_two_experts_and_missing_shards(tmp_path):
    shard = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
    touch(tmp_path, *(f"{noise}_noise_model/{shard.format(1)}" for noise in ("high", "low")))
    touch(tmp_path, f"low_noise_model/{shard.format(2)}", *T2V_FILES[1:], "google/umt5-xxl/tokenizer.json")
    with pytest.raises(
        WeightsError, match=r"missing: high_noise_model/diffusion_pytorch_model-00002-of-00002"
    ) as caught:
        find_parts(card("wan2.2-t2v-a14b"), LocalFolder(tmp_path))
    assert "low_noise" not in caught.value.message
    touch(tmp_path, f"high_noise_model/{shard.format(2)}")
    parts = {part.file.part: part for part in find_parts(card("wan2.2-t2v-a14b"), LocalFolder(tmp_path))}
    assert len(parts["dit"].paths) == len(parts["dit2"].paths) == 2


def test_speed_control_is_two_repositories(tmp_path):
    name = "wan2.1-1.3b-speedcontrol-v1"
    touch(tmp_path, *(f"Wan-AI/Wan2.1-T2V-1.3B/{file}" for file in (*T2V_FILES, "google/umt5-xxl/tokenizer.json")))
    with pytest.raises(WeightsError, match=r"missing: model\.safetensors \(DiffSynth-Studio/Wan2\.1-1\.3b-speed"):
        find_parts(card(name), LocalFolder(tmp_path))
    touch(tmp_path, "DiffSynth-Studio/Wan2.1-1.3b-speedcontrol-v1/model.safetensors")
    parts = {part.file.part: part for part in find_parts(card(name), LocalFolder(tmp_path))}
    assert parts["motion_controller"].paths[0].name == "model.safetensors"


@pytest.mark.parametrize(
    ("name", "tiny", "missing"),
    [
        ("wan2.1-1.3b-speedcontrol-v1", tiny_t2v, "motion_controller"),
        ("wan2.1-fun-v1.1-control-camera-1.3b", tiny_i2v, "control_adapter"),
        ("wan2.1-i2v-14b-480p", tiny_t2v, "image_encoder"),
        ("wan2.1-vace-1.3b", tiny_t2v, "vace"),
    ],
)
def test_a_card_says_what_its_files_lack(name, tiny, missing, mini_folder):
    pipe = tiny(mini_folder / "tokenizer").pipe
    with pytest.raises(WeightsError, match=f"the files of {name} hold no {missing}"):
        _check_is_card(card(name), pipe)


def test_missing_shards_of_one_series_only():
    assert missing_shards(["a-00001-of-00001.bin", "b-00002-of-00002.bin"]) == ["b-00001-of-00002.bin"]


def rewrite_header(raw: bytes, change) -> bytes:
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:5],
        lambda raw: raw[:40],
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: b"\xff" * 16 + raw[16:],
        lambda raw: raw[:8] + b"not json" + raw[16:],
        lambda raw: rewrite_header(raw, lambda header: header["w"].update(shape=[3, 4])),
        lambda raw: rewrite_header(raw, lambda header: header["w"].pop("data_offsets")),
        lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
    ],
)
def test_damaged_safetensors_are_named(damage, tmp_path):
    path = tmp_path / "dit.safetensors"
    save_file({"w": torch.ones(3, 5), "b": torch.zeros(3)}, path)
    check_safetensors(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=r"dit\.safetensors is damaged"):
        check_safetensors(path)


def test_wan_mini_loads_through_diffsynth_and_says_nothing_on_stdout(mini_folder, tmp_path, capsys):
    found = locate(card("wan-mini"), mini_folder, cache_dir=tmp_path)
    model = load_model(found)
    again = load_model(found)
    assert capsys.readouterr().out == ""
    assert model.pipe.dit2 is None, "registered twice, DiffSynth believes in two experts"
    assert again.pipe.dit2 is None
    assert model.pipe.dit.in_dim == 36
    assert not any(parameter.requires_grad for parameter in model.pipe.parameters())


def test_identity_depends_on_every_file_and_not_on_the_folder(mini_folder, tmp_path):
    import shutil

    copy = shutil.copytree(mini_folder, tmp_path / "copy")
    one = locate(card("wan-mini"), mini_folder, cache_dir=tmp_path)
    assert locate(card("wan-mini"), copy, cache_dir=tmp_path).sha256 == one.sha256
    tokenizer = copy / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert locate(card("wan-mini"), copy, cache_dir=tmp_path).sha256 != one.sha256


def test_a_hash_is_remembered_and_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sakuga.wan.weights.REMEMBERED_FROM_BYTES", 1)
    path = tmp_path / "w.bin"
    path.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert file_sha256(path, tmp_path / "cache") == expected
    notes = list((tmp_path / "cache" / "sha256").iterdir())
    assert [note.read_text() for note in notes] == [expected]
    notes[0].write_text("remembered")
    assert file_sha256(path, tmp_path / "cache") == "remembered"
    assert not caplog.records
    # A file in the folder's place: a permission would not stop root.
    (tmp_path / "blocked").write_bytes(b"")
    assert file_sha256(path, tmp_path / "blocked") == expected
    assert "hash not remembered" in caplog.text
    assert "SAKUGA_CACHE" in caplog.text


def test_truncated_part_is_found_before_loading(mini_folder, tmp_path):
    import shutil

    copy = shutil.copytree(mini_folder, tmp_path / "copy")
    vae = copy / "vae.safetensors"
    vae.write_bytes(vae.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"vae\.safetensors is damaged or cut off"):
        locate(card("wan-mini"), copy, cache_dir=tmp_path)


def test_package_weights_are_checked_against_their_card(mini_folder, tmp_path, monkeypatch):
    import shutil

    package = shutil.copytree(mini_folder, tmp_path / "package")
    names = [path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()]
    hashes = {name: file_sha256(package / name) for name in names}
    (package / "card.json").write_text(json.dumps({"sha256": hashes}))
    monkeypatch.setattr(mini, "mini_dir", lambda: package)
    locate(card("wan-mini"), cache_dir=tmp_path)
    tensors = load_file(package / "vae.safetensors")
    next(iter(tensors.values())).view(torch.uint8).flatten()[0] += 1  # one bit pattern, same header and length
    save_file(tensors, package / "vae.safetensors")
    with pytest.raises(WeightsError, match=r"vae\.safetensors is damaged: its sha256"):
        locate(card("wan-mini"), cache_dir=tmp_path)
    (package / "card.json").write_text("{")
    with pytest.raises(WeightsError, match=r"card\.json is damaged"):
        locate(card("wan-mini"), cache_dir=tmp_path)
    (package / "card.json").unlink()
    with pytest.raises(WeightsError, match=r"card\.json is missing"):
        locate(card("wan-mini"), cache_dir=tmp_path)


def test_a_file_of_another_model_is_named(mini_folder, tmp_path):
    import shutil

    copy = shutil.copytree(mini_folder, tmp_path / "copy")
    save_file({"some": torch.ones(2)}, copy / "dit.safetensors")
    with pytest.raises(WeightsError, match=r"dit\.safetensors holds no model that DiffSynth knows"):
        load_model(locate(card("wan-mini"), copy, cache_dir=tmp_path))


def test_a_model_without_weights_says_where_to_get_them(tmp_path):
    with pytest.raises(WeightsError, match="sakuga models fetch"):
        locate(card("wan2.1-t2v-14b"), cache_dir=tmp_path)


def test_print_inside_goes_to_the_log(capsys, caplog):
    with caplog.at_level("DEBUG"), stdout_to_log():
        print("Loaded model: x")
    assert capsys.readouterr().out == ""
    assert "Loaded model: x" in caplog.text


def test_diffsynths_bar_over_tiles_does_not_write_over_ours(capfd):
    import torch

    from tiny_wan import TinyVae

    with stdout_to_log(), torch.no_grad():
        TinyVae().decode(torch.zeros(1, 16, 1, 8, 8), device="cpu", tiled=True, tile_size=(4, 4), tile_stride=(2, 2))
    assert capfd.readouterr() == ("", "")
